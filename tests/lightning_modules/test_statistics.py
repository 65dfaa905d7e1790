"""What is measured of a zoo's teachers is measured once, and anew whenever anything it depends on is another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hypercompress.generator import HypernetConfig
from hypercompress.meta import Statistics
from lightning_modules import statistics
from lightning_modules.episodes import Episodes
from lightning_modules.meta_training import MetaTraining
from lightning_modules.statistics import recall


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The teachers that were measured."""
    found: list[nn.Module] = []
    measure = statistics.measure_statistics
    spy: Callable[..., Statistics] = lambda t, *a, **k: (found.append(t), measure(t, *a, **k))[1]  # noqa: E731
    monkeypatch.setattr(statistics, "measure_statistics", spy)
    return found


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()


def images(count: int = 32) -> list[Tensor]:
    return list(torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))


def same(one: Statistics, other: Statistics) -> bool:
    pairs = [(curvature, other.curvatures[name]) for name, curvature in one.curvatures.items()]
    tensors = [(getattr(a, f), getattr(b, f)) for a, b in pairs for f in ("signal", "fisher", "gram", "mean")]
    return bool(tensors) and one.spec == other.spec and all(torch.equal(a, b) for a, b in tensors)


def test_a_second_start_measures_nothing(zoo: Path, measured: list[nn.Module]) -> None:
    """And gives the same bits; the first with files the same as one without."""
    episodes = Episodes(calibration=32, refit_images=8)
    runs = [MetaTraining(zoo, Path("out"), episodes=episodes) for _ in range(2)]
    for run in runs:
        run.setup("fit")
        assert len(measured) == 2  # one for each teacher that may be read
    assert len(list((zoo / ".statistics").iterdir())) == 2
    for split, members in runs[0].members.items():
        for one, other in zip(members, runs[1].members[split], strict=True):
            assert one.case.shares == other.case.shares
            for name, sketch in one.case.sketches[True].items():
                a, b = sketch.curvature, other.case.sketches[True][name].curvature
                assert a is not None
                assert b is not None
                assert torch.equal(a.signal, b.signal)
                assert torch.equal(a.fisher, b.fisher)
    elsewhere = MetaTraining(zoo, Path("out"), episodes=episodes, statistics=Path("kept"))
    elsewhere.setup("fit")
    assert len(measured) == 4
    assert len(list(Path("kept").iterdir())) == 2
    more = MetaTraining(zoo, Path("out"), episodes=Episodes(calibration=48, refit_images=8))
    more.setup("fit")
    assert len(measured) == 6  # another number of images


def test_a_step_after_the_second_start_is_that_after_the_first(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: equal values in memory of another alignment would be summed in another order."""
    gradients: list[list[Tensor]] = []
    for _ in range(2):
        torch.manual_seed(0)
        run = MetaTraining(zoo, Path("out"), HypernetConfig(16, 1, 2), episodes=Episodes(calibration=32, free=0.5))
        monkeypatch.setattr(run, "log_dict", lambda *a, **k: None)
        run.setup("fit")
        for step in range(4):
            run.training_step(step).backward()
        gradients.append([p.grad.clone() for p in run.network.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_the_first_start_gives_what_the_next_reads(tmp_path: Path, measured: list[nn.Module]) -> None:
    network = teacher()
    first, second = (recall(tmp_path, "a", network, images()) for _ in range(2))
    assert len(measured) == 1
    assert same(first, second)
    assert same(first, recall(None, "a", network, images()))
    assert len(measured) == 2  # without a folder nothing is kept


def test_whatever_it_depends_on_is_measured_again(tmp_path: Path, measured: list[nn.Module]) -> None:
    network, activation = teacher(), teacher()
    recall(tmp_path, "a", network, images())
    heavier = teacher()
    heavier[3].weight.data[0, 0] += 1e-3
    activation[1] = nn.GELU()
    calls = (
        (heavier, images(), 0),
        (activation, images(), 0),  # the same weights
        (network, images(48), 0),
        (network, [images()[0], images()[1] + 1e-3], 0),
        (network, images(), 1),
    )
    for number, (other, batches, seed) in enumerate(calls, 2):
        recall(tmp_path, "a", other, batches, seed=seed)
        assert len(measured) == number
    recall(tmp_path, "a", network, images())
    assert len(measured) == len(calls) + 1  # the first is still there


@pytest.mark.parametrize("version", ["torch", "hypercompress", "format"])
def test_another_version_measures_again(
    version: str, tmp_path: Path, measured: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    recall(tmp_path, "a", teacher(), images())
    if version == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0")
    elif version == "hypercompress":
        monkeypatch.setattr(statistics, "version", lambda name: "0.0")
    else:
        monkeypatch.setattr(statistics, "FORMAT", statistics.FORMAT + 1)
    recall(tmp_path, "a", teacher(), images())
    assert len(measured) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    save_file({"x": torch.zeros(3)}, path)


def of_another(path: Path) -> None:
    """A good file under the wrong name."""
    recall(path.parent, "b", teacher(), images(48))
    next(path.parent.glob("b-*")).replace(path)


@pytest.mark.parametrize("damage", [cut, flip, empty, foreign, of_another])
def test_a_damaged_or_foreign_file_is_measured_again_and_replaced(
    damage: Callable[[Path], None],
    tmp_path: Path,
    measured: list[nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(statistics, "rank_zero_info", said.append)
    first = recall(tmp_path, "a", teacher(), images())
    (path,) = tmp_path.iterdir()
    damage(path)
    before = len(measured)
    assert same(recall(tmp_path, "a", teacher(), images()), first)
    assert len(measured) == before + 1
    assert said == [f"zoo: {path} is damaged or not ours; measured again and replaced"]
    assert same(recall(tmp_path, "a", teacher(), images()), first)
    assert len(measured) == before + 1


def test_a_folder_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, measured: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(statistics, "rank_zero_info", said.append)
    (tmp_path / "file").touch()
    found = recall(tmp_path / "file" / "below", "a", teacher(), images())
    assert same(found, recall(None, "a", teacher(), images()))
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics, "save_file", full)
    recall(tmp_path, "a", teacher(), images())
    assert list(tmp_path.iterdir()) == []
