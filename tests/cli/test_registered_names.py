"""A registered data set wins over a folder of its name in the working directory, in every check too."""

from pathlib import Path

import pytest

from hypercompress.cli import checks, inputs
from hypercompress.errors import DataError
from tests.cli.words import ARGS, SIZE, Run, write_images

NAME = "fashion_mnist_mini"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_transfer_reads_the_set_and_not_the_splits_of_the_folder(run: Run, here: Path) -> None:
    for split in ("train", "holdout"):
        for name in "ab":
            write_images(here / NAME / split / name, 1)
    given = ("--no-pretrained", "--model-args", ARGS, *SIZE, "--shots", 1, "--views", 0)
    code, _, err = run("transfer", "test_resnet", "out", *given, "--data", NAME)
    assert (code, err) == (0, "")
    assert (here / "out" / "config.json").is_file()
    code, _, err = run("transfer", "test_resnet", "other", *given, "--data", f"./{NAME}")
    assert code == 2
    assert f"received {NAME} with holdout beside train, of the same classes" in err


def test_evaluate_does_not_take_the_set_for_the_folder(run: Run, student: Path, here: Path) -> None:
    """The student was calibrated on the training images of the set; those of the evaluation are others."""
    note = "some of these have calibrated the student"
    write_images(here / NAME / "a", 1)
    code, out, _ = run("evaluate", student, "--data", NAME, "--images", 64)
    assert code == 0
    assert note not in out
    assert not inputs.seen_before(str(student), NAME)


@pytest.mark.parametrize("root", ["", ":", ":somewhere"])
def test_a_name_with_a_root_is_no_folder_either(here: Path, root: str) -> None:
    for split in ("train", "holdout"):
        write_images(here / f"digits{root}" / split / "a", 1)
    assert checks.image_folder(f"digits{root}") is None
    checks.splits(f"digits{root}")
    with pytest.raises(DataError, match="with holdout beside train"):
        checks.splits(f"./digits{root}")
    assert checks.image_folder("nowhere") is None
