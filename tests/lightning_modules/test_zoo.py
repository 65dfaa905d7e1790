import csv
import shutil
from pathlib import Path

import pytest
import torch

from hypercompress.data import Preprocess
from hypercompress.errors import DataError
from hypercompress.fidelity import accuracy
from hypercompress.models import load_model
from lightning_modules import zoo
from lightning_modules.data import ImageDataModule, Inputs
from lightning_modules.index import COLUMNS, write_rows


@pytest.fixture
def config(root: Path) -> Path:
    return root / "configs" / "debug" / "zoo.yaml"


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "zoo.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_zoo_is_built_once(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--config", str(config), "--out", str(tmp_path)]
    assert zoo.main([*arguments, "--only", "test_efficientnet"]) == 0
    assert [row["name"] for row in rows(tmp_path)] == ["test_efficientnet"]
    first = (tmp_path / "test_efficientnet" / "config.json").stat().st_mtime_ns

    trained = []
    train = zoo.train
    monkeypatch.setattr(zoo, "train", lambda recipe, *rest: (trained.append(recipe.name), train(recipe, *rest)))
    assert zoo.main(arguments) == 0
    assert trained == ["test_mambaout", "test_efficientnet_noisy"]
    assert (tmp_path / "test_efficientnet" / "config.json").stat().st_mtime_ns == first
    assert [(row["name"], row["split"]) for row in rows(tmp_path)] == [
        ("test_efficientnet", "train"),
        ("test_mambaout", "validation"),
        ("test_efficientnet_noisy", "train"),
    ]

    # The index says what an independent count and measurement say.
    for row in rows(tmp_path):
        network, architecture = load_model(str(tmp_path / row["name"]))
        assert architecture is not None
        assert int(row["params"]) == sum(p.numel() for p in network.parameters())
        assert int(row["macs"]) > 0
        assert Preprocess.of(network).input_size == (1, 28, 28)
        data = ImageDataModule(row["data"], inputs=Inputs(like=str(tmp_path / row["name"])))
        data.setup("validate")
        assert float(row["top1"]) == pytest.approx(accuracy(network, data.val_dataloader()), abs=1e-4)

    # A row that is missing is measured again, without training.
    (tmp_path / "zoo.csv").unlink()
    assert zoo.main(arguments) == 0
    assert len(trained) == 2
    assert len(rows(tmp_path)) == 3

    # The config says which split a teacher belongs to, also of one that is there.
    measured = [row["top1"] for row in rows(tmp_path)]
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text().replace("split: validation", "split: heldout"))
    assert zoo.main(["--config", str(other), "--out", str(tmp_path)]) == 0
    assert len(trained) == 2
    assert [row["split"] for row in rows(tmp_path)] == ["train", "heldout", "train"]
    assert [row["top1"] for row in rows(tmp_path)] == measured


def test_a_teacher_that_is_trained_anew_is_described_anew(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", str(config), "--out", str(tmp_path), "--only", "test_efficientnet", "test_mambaout"]
    assert zoo.main(arguments) == 0
    found = rows(tmp_path)
    write_rows(tmp_path / "zoo.csv", [{**row, "top1": "0.0001"} for row in found])
    shutil.rmtree(tmp_path / "test_efficientnet")
    assert zoo.main(arguments) == 0
    assert rows(tmp_path) == [found[0], {**found[1], "top1": "0.0001"}]  # in its place; the other is not measured again

    # Interrupted between training and measuring: the old row is gone, and the next build measures.
    shutil.rmtree(tmp_path / "test_efficientnet")
    with monkeypatch.context() as patched:
        patched.setattr(zoo, "describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            zoo.main(arguments)
    assert [row["name"] for row in rows(tmp_path)] == ["test_mambaout"]
    assert zoo.main(arguments) == 0
    assert found[0] in rows(tmp_path)


def test_data_that_were_moved_are_found_where_they_lie_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teachers are there, so nothing is trained or measured; a config that names other data moves nothing."""
    for name in ("train", "describe"):
        monkeypatch.setattr(zoo, name, lambda *_: pytest.fail("a teacher that is there"))
    monkeypatch.setattr(zoo, "is_student_folder", lambda _: True)
    config, out = tmp_path / "zoo.yaml", tmp_path / "zoo"
    place, row = str(tmp_path), dict.fromkeys(COLUMNS, "1")
    out.mkdir()
    for (first, second), wanted in (
        (("{root}/set", "digits:{root}"), [f"{place}/set", f"digits:{place}"]),
        (("{root}/other", "fashion_mnist:{root}"), ["old/set", "digits:old"]),
        (("digits", "fashion_mnist_mini"), ["old/set", "digits:old"]),
    ):
        write_rows(out / "zoo.csv", [{**row, "name": n, "data": d} for n, d in (("a", "old/set"), ("b", "digits:old"))])
        config.write_text(
            f"defaults: {{model: test_resnet, split: train, epochs: 1, batch_size: 8}}\n"
            f"teachers: [{{name: a, data: '{first}'}}, {{name: b, data: '{second}'}}]\n"
        )
        assert zoo.main(["--config", str(config), "--out", str(out), "--root", place]) == 0
        assert [found["data"] for found in rows(out)] == wanted


def test_an_interrupted_teacher_leaves_nothing(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo.Teacher, "training_step", stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        zoo.main(["--config", str(config), "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_wrong_configs_name_all_their_faults(tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(
        "defaults: {data: digits, model: resnet18, split: train}\n"
        "teachers: [{name: a}, {name: a}, {name: b, split: test}, {name: c, colour: red}]\n"
    )
    with pytest.raises(DataError) as caught:
        zoo.read_recipes(path)
    for fault in ("a: named twice", "b: split test", "c: ", "colour"):
        assert fault in str(caught.value)


@pytest.mark.parametrize("text", ["teachers: [1]", "{", "- a", "teacher: []"])
def test_no_zoo_config(text: str, tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="which is no zoo config"):
        zoo.read_recipes(path)


def test_bad_input_is_one_line_and_exit_code_2(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo.main(["--config", str(config), "--out", str(tmp_path), "--only", "nobody"]) == 2
    assert zoo.main(["--config", str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: received --only nobody")
    assert lines[1].startswith("error: received")


def test_the_seed_decides(config: Path, tmp_path: Path) -> None:
    recipe = zoo.read_recipes(config)[0]
    for name in ("one", "two"):
        zoo.train(recipe, recipe.data, tmp_path / name)
    states = [load_model(str(tmp_path / name))[0].state_dict() for name in ("one", "two")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
