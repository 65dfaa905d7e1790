"""Image folders: one sub-folder for each class (labelled), or images side by side (unlabelled)."""

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from hypercompress.data.images import UNLABELLED, ImageData
from hypercompress.data.numbering import places_of
from hypercompress.data.preprocess import Preprocess, of_known_range
from hypercompress.errors import DataError, listed, warn

JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
SUFFIXES = JPEG | {".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"}
# Images that Pillow knows and a user may hold for read: named where they are left out. A fixed list, because asking
# Pillow loads all its decoders, and it counts .pdf, .h5 and .mpg as images.
OTHERS = frozenset(
    {".apng", ".avif", ".dib", ".gif", ".ico", ".j2k", ".jp2", ".jpx", ".pbm", ".pcx", ".pnm", ".psd", ".qoi", ".tga"}
)
DECODED_AT_MOST = 20_000  # images that are decoded once before use; larger folders have only their headers read
TRAINING = ("train", "training")  # names of a split's folder, in order of preference, without regard to case
TESTS = ("test", "testing")
HELD_OUT = ("val", "valid", "validation", *TESTS)


class FileImages:
    """Image files with labels, as a source for `ImageData`."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]) -> None:
        self.paths = list(paths)
        self.labels = list(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                return image.copy(), self.labels[index]
        except Exception as error:
            raise DataError(f"received {path}, which cannot be decoded; expected an image; remove it") from error


def open_folder(
    root: Path, preprocess: Preprocess, *, train: bool, augment: bool = False, test: bool = False
) -> ImageData:
    """The images below a folder, sorted by path; every image is tried before use.

    Args:
        root: class sub-folders (labels follow their sorted names), or images (label -1). If it holds ``train`` beside
            ``val`` or ``test``, one of these is opened: ``train``, or for ``train=False`` ``val``, else ``test``; the
            classes are those of ``train``. ``training``, ``valid``, ``validation`` and ``testing`` are names of a
            split too, and case does not matter.
        train: which of the two.
        augment: see `Preprocess.transform`.
        test: of ``val`` and ``test`` the latter, where both are there.

    Raises:
        DataError: no such folder, no readable image, a class that ``train`` does not have, or a folder beside
            ``train`` that has its classes but no name of a split.

    Unreadable images (links to nothing and files that end in one of `OTHERS`, too) are left out; one warning counts
    them and names the first five; ``skipped`` holds all names. A sub-folder without images in either split is no class;
    another warning names those. Hidden folders are not read.
    """
    if not root.is_dir():
        raise DataError(f"received {root}, which is no folder; expected a folder of images; check the path")
    chosen, classes, empty = _choose(root, train, test)
    paths, labels, left_out = _list(chosen, classes)
    if not paths:
        raise DataError(
            f"received {chosen}, which holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}, "
            "side by side or in one sub-folder for each class; check the path"
        )
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        readable = list(pool.map(_readable if len(paths) <= DECODED_AT_MOST else _recognisable, paths))
    skipped = [str(path.relative_to(chosen)) for path, good in zip(paths, readable, strict=True) if not good]
    if not any(readable):
        raise DataError(
            f"received {chosen}, where none of {len(paths)} images can be read: {listed(skipped)}; expected images; "
            "replace the files"
        )
    if empty:
        folders = f"{len(empty)} folder{'s' * (len(empty) > 1)}"
        warn(f"{root}: left out {folders} without images: {listed(empty)}")
    skipped += left_out
    if skipped:
        total = len(paths) + len(left_out)
        warn(f"{chosen}: skipped {len(skipped)} of {total} images: {listed(skipped)}")
    kept = [(path, label) for path, label, good in zip(paths, labels, readable, strict=True) if good]
    classes = classes if UNLABELLED not in labels else []
    source = FileImages([path for path, _ in kept], [label for _, label in kept])
    return ImageData(source, preprocess.transform(augment), classes=classes, skipped=skipped)


def folder_read(root: Path, *, train: bool, test: bool = False) -> Path:
    """The folder whose images `open_folder` reads; no image is read.

    Raises:
        DataError: see `check_splits`.
    """
    return _choose(root, train, test)[0]


def check_splits(root: Path) -> None:
    """The classes of ``val`` or ``test`` are those of ``train`` beside it; no image is read.

    Raises:
        DataError: one of them has a class that ``train`` lacks, or a folder beside ``train`` has its classes but no
            name of a split.
    """
    if root.is_dir():
        _choose(root, train=False)


def _choose(root: Path, train: bool, test: bool = False) -> tuple[Path, list[str], list[str]]:
    """The folder to read, the names of its classes, none if it is flat, and sub-folders without images, as below
    ``root``.
    """
    inside, empty = _folders(root)
    others = (*TESTS, *HELD_OUT) if test else HELD_OUT
    training, held_out = (_split(inside, names) or _split(empty, names) for names in (TRAINING, others))
    if training and held_out:
        return _choose_split(root / training, root / held_out, train)
    if inside and {name.lower() for name in inside} <= {*TRAINING, *HELD_OUT}:
        raise DataError(
            f"received {root} with {' and '.join(inside)} inside; expected train beside val or test; pass one of the "
            f"folders, such as {root / inside[0]}"
        )
    if training in inside:
        _refuse_unnamed_split(root, training, inside)
    return root, inside, empty if inside else []


def _choose_split(training: Path, held_out: Path, train: bool) -> tuple[Path, list[str], list[str]]:
    """As `_choose`; the classes are the folders of ``training`` with images in one of the splits, and where it has no
    folders, for want of labels, those of the other split.
    """
    (found, empty), (others, _) = _folders(training), _folders(held_out)
    if not train and not found and not empty:
        return held_out, others, []
    meant = _meant(others, [*found, *empty])
    strange = [name for name in others if name not in meant]
    if strange and not train:
        raise DataError(
            f"received {held_out} with classes {', '.join(strange)} that {training} lacks; expected the same classes; "
            "rename or remove the folders"
        )
    chosen, inside = (training, found) if train else (held_out, others)
    if not inside:
        return chosen, [], []
    classes = sorted({*found, *meant.values()})
    return chosen, classes, [str(Path(training.name, name)) for name in sorted({*found, *empty} - {*classes})]


def _meant(names: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """Of folders the classes that they hold; those of no class are left out."""
    return {name: classes[place] for name, place in places_of(names, classes).items()}


def _split(inside: Sequence[str], names: Sequence[str]) -> str | None:
    """The folder that bears the first of a split's names."""
    return next((folder for name in names for folder in inside if folder.lower() == name), None)


def _refuse_unnamed_split(root: Path, training: str, inside: Sequence[str]) -> None:
    """A folder beside ``train`` with its classes, or some, is the other split, whatever it is called, and no class."""
    classes, _ = _folders(root / training)
    found = {name: _folders(root / name)[0] for name in inside if name != training}
    same = [name for name, some in found.items() if some and len(_meant(some, classes)) == len(some)]
    if classes and same:
        raise DataError(
            f"received {root} with {', '.join(same)} beside {training}, of the same classes; expected the held-out "
            f"images in {', '.join(HELD_OUT[:-1])} or {HELD_OUT[-1]}; rename the folder or pass one of them"
        )


def _list(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int], list[str]]:
    """Image paths, their labels, and the names of images that are not read or lie beside the class folders."""
    everything = SUFFIXES | OTHERS
    beside = [path for path in sorted(folder.iterdir()) if _is_image(path, everything)]
    if not classes:
        paths = [path for path in beside if _ends_in(path, SUFFIXES)]
        return paths, [UNLABELLED] * len(paths), [path.name for path in beside if _ends_in(path, OTHERS)]
    paths, labels, left_out = list[Path](), list[int](), list[str]()
    bearing: dict[str, list[Path]] = {name: [] for name in classes}
    for here, name in _meant((path.name for path in folder.iterdir() if path.is_dir()), classes).items():
        bearing[name].append(folder / here)
    for label, places in enumerate(bearing.values()):
        found = sorted(path for place in places for path in _images(place, everything))
        read = [path for path in found if _ends_in(path, SUFFIXES)]
        paths += read
        labels += [label] * len(read)
        left_out += [str(path.relative_to(folder)) for path in found if _ends_in(path, OTHERS)]
    return paths, labels, left_out + [path.name for path in beside]


def _folders(root: Path) -> tuple[list[str], list[str]]:
    """Names of the sub-folders with an image somewhere below, and of those without (annotations, ``__MACOSX``)."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    empty = [name for name in names if next(_images(root / name, SUFFIXES), None) is None]
    return [name for name in names if name not in empty], empty


def _images(folder: Path, suffixes: Set[str]) -> Iterator[Path]:
    """Every image below a folder, links to folders followed, each folder once; hidden folders (``.ipynb_checkpoints``)
    hold none of the user's.
    """
    # A link that leads back up brings no image in, be it from where the folder is or, of a link, where it stands.
    stands = folder.parent.resolve() / folder.name
    seen = {str(above) for above in (*folder.resolve().parents, *stands.parents)}
    for here, inside, files in os.walk(folder, followlinks=True):
        place, real = Path(here), os.path.realpath(here)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        linked = [((place / name).is_symlink(), name) for name in inside if not name.startswith(".")]
        inside[:] = [name for _, name in sorted(linked)]  # where an image is, before links to it
        yield from (path for name in files if _is_image(path := place / name, suffixes))


def _is_image(path: Path, suffixes: Set[str]) -> bool:
    """Whether it is called like an image and is a file, or was meant to be one: a link to nothing."""
    if not _ends_in(path, suffixes) or path.name.startswith("."):
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


def _ends_in(path: Path, suffixes: Set[str]) -> bool:
    return path.suffix.lower() in suffixes


def _readable(path: Path) -> bool:
    """Whether the whole image can be decoded; JPEGs at an eighth of the size, which reads every byte but is quick.

    Floats, and integers of more than 16 bits, are decoded but no image that is understood.
    """
    try:
        with Image.open(path) as image:
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            return of_known_range(image)
    except Exception:  # noqa: BLE001 - Pillow's decoders raise anything on a corrupt file
        return False


def _recognisable(path: Path) -> bool:
    """Whether Pillow knows the format, and its range; only the rare images of 32 bits are decoded for that."""
    try:
        with Image.open(path) as image:
            return of_known_range(image)
    except Exception:  # noqa: BLE001 - as above
        return False
