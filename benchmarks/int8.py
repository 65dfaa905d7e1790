"""The ONNX file in eight bits beside the float file of the same student: agreement, KL, size and speed.

    python -m benchmarks.int8 --teacher FOLDER [FOLDER ...] --data fashion_mnist:ROOT [--images 256] [--out DIR]

Of each trained teacher a `kfac` student of half the parameters, refitted, from 1,024 training images; the first
``--images`` of these give the ranges of the static file. Both ways that the exporter has are written whichever it would
choose (`chosen` says that): *static* and *dynamic*, see `hypercompress/export/int8.py`. They differ from those of
``hypercompress export`` in one thing: all images given calibrate, where the exporter keeps one in four to measure with.
Agreement and KL are measured against the float student in torch on 1,000 test images, of the float file too.
Milliseconds of the three files are measured in turns in onnxruntime, on as many threads as torch has.

Writes ``int8.csv``. One CPU core, about two minutes for each teacher.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from benchmarks.shared.common import RESULTS, Results, Set, digest, markdown, read_set, say
from hypercompress.compress import finish
from hypercompress.errors import ExportError
from hypercompress.export import export
from hypercompress.export.int8 import choose, convolution_share, write_dynamic, write_static
from hypercompress.export.onnx_file import OnnxModel
from hypercompress.fidelity import compare
from hypercompress.models import load_model
from hypercompress.preparation import prepare
from hypercompress.running.timing import interleaved
from hypercompress.specs import Budget
from hypercompress.student import Student

KEY = ("teacher", "params", "way")
MADE_OF = ("weights", "images", "test_images", "seconds")
WAYS = ("float", "static", "dynamic")
SHARE = 0.5
STUDENT_IMAGES, TEST_IMAGES = 1024, 1000
BATCH = 64  # images at once, where nothing is timed
BATCH_SIZES = (1, 16)  # that the files are timed at


def written(student: Student, calibration: Sequence[Tensor], folder: Path) -> dict[str, Path]:
    """A file for each way; a way that the quantizer refuses is said and left out."""
    files = {way: folder / f"{way}.onnx" for way in WAYS}
    export(student, files["float"])
    for way, quantized in (("static", partial(write_static, batches=calibration)), ("dynamic", write_dynamic)):
        try:
            quantized(files["float"], files[way])
        except ExportError as error:
            say(f"{way}: {error}")
            del files[way]
    return files


def closeness(student: nn.Module, file: Path, test: Set) -> dict[str, float | None]:
    """How far the answers of a file are from the float student's."""
    found = compare(student, OnnxModel(file), zip(test.images.split(BATCH), test.labels.split(BATCH), strict=True))
    return {"agreement": found.agreement, "kl": found.kl, "top1": found.top1_student}


def times(files: Mapping[str, Path], test: Set, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of each file at each batch size, and how many times as fast as the float file it is."""
    found: dict[str, dict[str, float]] = {way: {} for way in files}
    for size in BATCH_SIZES:
        batch = test.images[:size]
        timings = interleaved([partial(OnnxModel(file), batch) for file in files.values()], seconds)
        for way, timing in zip(files, timings, strict=True):
            low, high = timing.quartiles
            columns = {"ms": timing.ms, "ms_low": low, "ms_high": high, "speedup": timings[0].ms / timing.ms}
            found[way] |= {f"{name}_{size}": value for name, value in columns.items()}
    return found


def rows(student: Student, calibration: Sequence[Tensor], test: Set, seconds: float) -> dict[str, dict[str, Any]]:
    """What was found of each way."""
    with TemporaryDirectory() as folder:
        files = written(student, calibration, Path(folder))
        chosen = choose(files["float"], has_data=True)
        share = convolution_share(files["float"])
        timed = times(files, test, seconds)
        float_bytes = files["float"].stat().st_size
        return {
            way: {
                "convolution_share": share,
                "chosen": way == chosen,
                "bytes": file.stat().st_size,
                "bytes_ratio": file.stat().st_size / float_bytes,
                **closeness(student, file, test),
                **timed[way],
            }
            for way, file in files.items()
        }


def run(folder: Path, data: str, images: int, seconds: float, results: Results) -> None:
    """The rows of a teacher, unless they are there."""
    made_of = {"weights": digest(folder), "images": images, "test_images": TEST_IMAGES, "seconds": seconds}
    about = {"teacher": folder.name, "params": SHARE, **made_of}
    if all(results.has({**about, "way": way}) for way in WAYS):
        return
    teacher, _ = load_model(str(folder))
    train = read_set(teacher, data, train=True, limit=STUDENT_IMAGES, shuffled=True)
    test = read_set(teacher, data, train=False, limit=TEST_IMAGES)
    student = finish(prepare(teacher, train.images.split(BATCH), "kfac"), Budget(params=SHARE))
    for way, found in rows(student, train.images[:images].split(BATCH), test, seconds).items():
        results.add({**about, "way": way, **found})
        say(
            f"{folder.name}, {way}{' (chosen)' * found['chosen']}: agreement {found['agreement']:.1%}, KL "
            f"{found['kl']:.2g}, {found['bytes_ratio']:.0%} of the bytes, {found['speedup_1']:.2f} times as fast"
        )


def table(results: Results) -> str:
    """Agreement, KL, size and speed of both ways, for a README; the exporter's choice in bold."""
    lines = []
    for row in results.rows:
        if row["way"] != "float":
            speed = [f"{float(row[f'speedup_{size}']):.2f}" for size in BATCH_SIZES]
            name = f"**{row['way']}**" if row["chosen"] == "True" else row["way"]
            kl, size = f"{1e3 * float(row['kl']):.2g}", f"{float(row['bytes_ratio']):.0%}"
            lines.append([row["teacher"], name, f"{float(row['agreement']):.1%}", kl, size, *speed])
    header = ("teacher", "way", "agreement", "KL, 1e-3 nats", "size")
    return markdown((*header, *(f"speed, batch {size}" for size in BATCH_SIZES)), lines)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="trained networks")
    parser.add_argument("--data", required=True, metavar="DATA", help="fashion_mnist:ROOT, as on the command line")
    parser.add_argument("--images", type=int, default=256, help="that give the static file's ranges (default: 256)")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured time of each file (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "int8.csv", KEY, MADE_OF)
    for folder in options.teacher:
        run(folder, options.data, options.images, options.seconds, results)
    say(table(results))


if __name__ == "__main__":
    main()
