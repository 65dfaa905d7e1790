"""Folders are read class after class; statistics, which not all batches give, see the classes mixed."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import efficientnet_lite0_distilled, few_images, int8
from benchmarks.shared import starts
from benchmarks.shared.common import Results, read_set
from benchmarks.shared.pairs import Pairs, Subject
from hypercompress.architecture import Architecture
from hypercompress.models import load_model
from hypercompress.specs import Budget
from hypercompress.student import Student

Network = tuple[nn.Module, Architecture]
EACH = 16  # images of a class


class StopError(Exception):
    """Nothing after the statistics matters."""


class Statistics:
    """In the place of `prepare`, or of what leads to it: keeps the images."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, _teacher: nn.Module, images: Tensor | Iterable[Tensor], *_: Any) -> Any:
        self.seen.append(images if isinstance(images, Tensor) else torch.cat(list(images)))
        raise StopError

    @property
    def light(self) -> list[bool]:
        """Of each image, whether it is one of the light class."""
        (images,) = self.seen
        return (images.flatten(1).mean(1) > 0).tolist()  # as prepared: 0 lies between the two


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, dark before light; no two images are the same."""
    for part in ("train", "val"):
        for place in range(2 * EACH):
            path = tmp_path / "photos" / part / ("dark" if place < EACH else "light") / f"{place:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((28, 28), 3 * place + 100 * (place >= EACH), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_all_of_a_set_can_be_shuffled_and_a_subset_is(network: Network, folder: Path) -> None:
    plain, *mixed = (
        read_set(network[0], str(folder), train=True, limit=limit, shuffled=shuffled)
        for limit, shuffled in ((100, False), (100, True), (2 * EACH, True), (None, True))
    )
    assert plain.labels.tolist() == [0] * EACH + [1] * EACH
    order = torch.randperm(2 * EACH, generator=torch.Generator().manual_seed(0))
    for found in mixed:
        assert all(torch.equal(a, b[order]) for a, b in ((found.images, plain.images), (found.labels, plain.labels)))
        torch.testing.assert_close(found.logits, plain.logits[order])
    few, same = (read_set(network[0], str(folder), train=True, limit=9, shuffled=s) for s in (False, True))
    assert torch.equal(few.images, same.images)
    assert len(set(few.labels.tolist())) == 2


def of_pairs(teacher: Path, data: str, results: Results) -> None:
    subject = Subject("one", load_model(str(teacher))[0], "w", data, [Budget(params=0.5)])
    Pairs("with", "with", lambda model, batches, _: starts.prepare(model, batches)).run(subject, [100], results)


PROGRAMS: dict[str, Callable[[Path, str, Results], Any]] = {
    "pairs": of_pairs,
    "starts": lambda teacher, data, _: starts.open_starts(teacher, data),
    "few_images": lambda teacher, data, results: few_images.run(teacher, data, 100, results),
    "int8": lambda teacher, data, results: int8.run(teacher, data, 100, 0.001, results),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_statistics_see_classes_mixed(
    network: Network, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    found = Statistics()
    Student(*network).save_pretrained(tmp_path / "teacher")
    for module in (starts, few_images, int8):
        monkeypatch.setattr(module, "prepare", found)
    monkeypatch.setattr(starts, "CALIBRATION", EACH)
    with pytest.raises(StopError):
        PROGRAMS[program](tmp_path / "teacher", str(folder), Results(tmp_path / "rows.csv", ("teacher",), ()))
    assert EACH // 4 <= sum(found.light[:EACH]) <= 3 * EACH // 4


def test_the_pilot_of_lite0_measures_all_classes(
    network: Network, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the four images in five that it does not judge on."""
    found, bench = Statistics(), efficientnet_lite0_distilled.Bench(folder.parent)
    monkeypatch.setattr(efficientnet_lite0_distilled, "open_teacher", lambda _: network)
    monkeypatch.setattr(efficientnet_lite0_distilled.Bench, "plans", lambda _self, *words: found(*words))
    results = Results(folder.parent / "pilot.csv", ("data",), ())
    with pytest.raises(StopError):
        efficientnet_lite0_distilled.pilot(bench, results)
    assert len(found.light) == 25
    assert 4 <= sum(found.light[:12]) <= 8
