"""However images, labels and models come to `adapt`: tensors, loaders, of a graph, compiled, in several precisions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from hypercompress import Student, adapt, from_pretrained
from hypercompress.errors import ArtefactError
from hypercompress.transfer import nearness
from hypercompress.transfer.support import as_support, draw_shots
from hypercompress.transfer.views import random_views
from tests.transfer.models import Make, model_of


def test_images_of_a_graph_are_taken_as_they_are(make_task: Make) -> None:
    x, y = make_task()
    asking = x.clone().requires_grad_()
    student = adapt(model_of(), asking * 1.0, y, network="none", views=0, steps=3)
    assert asking.grad is None
    assert torch.equal(student(x), adapt(model_of(), x, y, network="none", views=0, steps=3)(x))


def test_each_part_keeps_its_precision(make_task: Make) -> None:
    """As where norms are in single precision and all else is not; here it is the stem."""
    model, (x, y) = model_of(), make_task()
    model.conv1.double().register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    model.conv1.register_forward_hook(lambda _, inputs, output: output.float())
    student = adapt(model, x, y, network="none", views=0, levels=False)
    wanted = {name: p.dtype for name, p in model.named_parameters()}
    assert {name: p.dtype for name, p in student.model.named_parameters()} == wanted


def test_batches_of_a_loader_are_the_images_at_once(make_task: Make, trained: Make) -> None:
    model, (x, y), network = model_of(), make_task(shots=6), trained()
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    at_once = adapt(model, x, y, network=network, views=0)  # views are drawn batch by batch
    for batches, names in ((loader, ["a", "b", "c"]), (loader, None), (iter(list(loader)), None)):
        student = adapt(model, batches, network=network, names=names, views=0)
        torch.testing.assert_close(student(x), at_once(x), rtol=1e-3, atol=1e-3)
        assert student.report["transfer"]["classes"] == names


@pytest.mark.parametrize("how", ["compiled", "inference mode"])
def test_whatever_torch_makes_of_the_caller_s_calls(how: str, make_task: Make) -> None:
    model, (x, y) = model_of(), make_task()
    wanted = adapt(model, x, y, steps=2)
    if how == "compiled":
        got = adapt(torch.compile(model), x, y, steps=2)
    else:
        with torch.inference_mode():
            batches = [(x.clone(), y.clone())]
            got = adapt(model, x.clone(), y.clone(), steps=2)
            looked = adapt(model, batches, steps=2, names=["a", "b", "c"])
        assert looked.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(value, got.state_dict()[key]) for key, value in wanted.state_dict().items())


def test_labels_of_any_whole_numbers(make_task: Make) -> None:
    model, (x, y) = model_of(), make_task()
    wanted = adapt(model, x, y, steps=2).state_dict()
    for labels in (y.int(), y.tolist()):
        got = adapt(model, x, labels, steps=2).state_dict()
        assert all(torch.equal(value, got[key]) for key, value in wanted.items())


def test_shots_draw_so_many_of_each_class_by_the_seed(make_task: Make) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 2, 2])
    chosen = draw_shots(labels, 2, 5)
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(chosen, draw_shots(labels, 2, 5))
    assert len({tuple(draw_shots(labels, 2, seed).tolist()) for seed in range(8)}) > 1
    x, y = make_task(shots=5)
    assert adapt(model_of(), x, y, network="none", shots=2).report["transfer"]["images"] == 6


def equal(one: Student, other: Student) -> bool:
    return all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ([0, 1, 2], ["0", "1", "2"]),
        (np.array(["a", "b", "c"]), ["a", "b", "c"]),
        ({"b": 1, "a": 0, "c": 2}, ["a", "b", "c"]),
        ((name for name in "abc"), ["a", "b", "c"]),
        ([Path("a"), Path("b"), Path("c")], ["a", "b", "c"]),
    ],
)
def test_names_of_any_kind_are_texts_in_a_folder_that_loads(
    names: Any, wanted: list[str], make_task: Make, tmp_path: Path
) -> None:
    x, y = make_task()
    adapt(model_of(), x, y, network="none", views=0, levels=False, names=names).save_pretrained(tmp_path / "s")
    assert from_pretrained(tmp_path / "s").report["transfer"]["classes"] == wanted


def test_counts_of_numpy_are_written(make_task: Make, tmp_path: Path) -> None:
    x, y = make_task()
    counts = {name: np.int64(1) for name in ("steps", "views", "shots", "seed")}
    student = adapt(model_of(), x, y, network="none", levels=False, rate=np.float32(1e-4), **counts)  # type: ignore[arg-type]
    student.save_pretrained(tmp_path / "s")
    told = json.loads((tmp_path / "s" / "report.json").read_text())["transfer"]
    assert (told["steps"], told["shots"], told["seed"]) == (1, 1, 1)
    assert equal(
        student, adapt(model_of(), x, y, network="none", levels=False, rate=1e-4, steps=1, views=1, shots=1, seed=1)
    )


@pytest.mark.parametrize("put", [{"classes": [1, 2]}, {"note": np.int64(1)}])
def test_a_report_that_could_not_be_read_again_is_not_written(put: dict[str, Any], tmp_path: Path) -> None:
    student = Student(model_of(), report=put)
    with pytest.raises(ArtefactError, match="received a student whose report"):
        student.save_pretrained(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_names_change_nothing(make_task: Make) -> None:
    """Batches in the order of their labels, as folders are read: with names they were taken as they lie."""
    (x, y), options = make_task(shots=8), {"network": "none", "steps": 6, "rate": 1e-4, "levels": False}
    order = y.argsort(stable=True)
    x, y = x[order], y[order]
    batches = list(zip(x.split(8), y.split(8), strict=True))
    for some in (batches, DataLoader(TensorDataset(x, y), batch_size=8)):
        without = adapt(model_of(), some, **options)
        with_names = adapt(model_of(), some, names=list("abc"), **options)
        assert equal(without, with_names)
    support = as_support(batches, None, None, 0, list("abc"))
    assert [len(labels) for _, labels in support.batches] == [8, 8, 8]
    assert all(len(labels.unique()) > 1 for _, labels in support.batches)


class Anew:
    """Batches that are made again for each pass, by nobody knows what."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_steps_on_sorted_batches_that_cannot_be_mixed_are_told(make_task: Make) -> None:
    (x, y), options = make_task(shots=4), {"network": "none", "levels": False, "views": 0, "names": list("abc")}
    order = y.argsort(stable=True)
    batches = Anew(list(zip(x[order].split(4), y[order].split(4), strict=True)))
    with pytest.warns(UserWarning, match=r"in the order of their labels; expected mixed ones.* pass list\(loader\)"):
        adapt(model_of(), batches, steps=1, rate=1e-4, **options)
    adapt(model_of(), batches, **options)  # without steps any order will do
    adapt(model_of(), Anew([(x, y)]), steps=1, rate=1e-4, **options)


def test_images_of_two_sizes_make_batches_of_their_own(make_task: Make) -> None:
    x, y = make_task(shots=4)
    batches = [(x[:6], y[:6]), (x[6:, :, :24, :24], y[6:])]
    options = {"network": "none", "views": 2, "steps": 2, "rate": 1e-4, "levels": False}
    student = adapt(model_of(), batches, **options)
    assert student.report["transfer"]["images"] == len(x)
    assert equal(student, adapt(model_of(), batches, names=list("abc"), **options))


def test_a_loader_that_draws_some_images_is_counted_by_them(make_task: Make) -> None:
    (x, y), names = make_task(shots=8), list("abc")
    some = SubsetRandomSampler(range(13))
    for loader, count in (
        (DataLoader(TensorDataset(x, y), batch_size=5, sampler=some), 13),
        (DataLoader(TensorDataset(x, y), batch_size=5, sampler=some, drop_last=True), 10),
        (DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True), 24),
        (DataLoader(TensorDataset(x, y), batch_sampler=BatchSampler(some, 5, drop_last=False)), 13),
    ):
        assert as_support(loader, None, None, 0, names).images == count


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_large_batches_are_cut(names: list[str] | None) -> None:
    x, y = torch.arange(150.0).view(-1, 1, 1, 1), torch.arange(150) % 3
    loaders = [DataLoader(TensorDataset(x, y), batch_size=150, shuffle=shuffle) for shuffle in (False, True)]
    for some in ([(x, y)], *loaders, Anew([(x, y)])):
        batches = list(as_support(some, None, None, 0, names).on(torch.device("cpu")))
        assert [len(images) for images, _ in batches] == [64, 64, 22]
        assert all(torch.equal(images.flatten().long() % 3, labels) for images, labels in batches)
        assert sorted(torch.cat([images for images, _ in batches]).flatten().tolist()) == list(range(150))


class Own:
    """Some images for each batch, by a rule of one's own; without an end."""

    def __iter__(self) -> Any:
        while True:
            yield [0, 1, 2]


def test_a_loader_with_batches_of_its_own_is_judged_by_them(make_task: Make) -> None:
    (x, y), names = make_task(shots=8), list("abc")
    data = TensorDataset(x, y)
    for sampler, fixed, count in (
        (BatchSampler(RandomSampler(data), 5, drop_last=False), False, 24),
        (BatchSampler(RandomSampler(data, num_samples=13), 5, drop_last=True), False, 10),
        (BatchSampler(SequentialSampler(data), 5, drop_last=False), True, 24),
        (Own(), False, None),
    ):
        support = as_support(DataLoader(data, batch_sampler=sampler), None, None, 0, names)
        assert support.fixed == fixed
        assert support.images == count


def test_a_set_and_a_pair_are_taken_as_images_and_labels(make_task: Make) -> None:
    (x, y), options = make_task(), {"network": "none", "views": 0, "levels": False}
    wanted = adapt(model_of(), x, y, **options)
    for some in (TensorDataset(x, y), (x, y), [x, y]):
        assert equal(adapt(model_of(), some, **options), wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_labels_without_a_sign(dtype: torch.dtype, make_task: Make) -> None:
    (x, y), options = make_task(), {"network": "none", "views": 0, "levels": False}
    wanted = adapt(model_of(), x, y, **options)
    assert equal(adapt(model_of(), x, y.to(dtype), **options), wanted)
    assert equal(adapt(model_of(), [(x, y.to(dtype))], **options), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_are_cast_to_the_model(dtype: torch.dtype, make_task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `compress` does: with steps they were, without them refused."""
    (x, y), options = make_task(shots=4), {"network": "none", "views": 0, "levels": False}
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, 8 * label : 8 * label + 8] += 4  # apart: where little is to be told rounding decides
    wanted = adapt(model_of(), x, y, **options)(x).detach()
    student = adapt(model_of().to(dtype), x, y, **options)
    assert {parameter.dtype for parameter in student.parameters()} == {dtype}
    found = student(x.to(dtype)).detach().float()
    assert float((found - wanted).norm() / wanted.norm()) < 32 * max(torch.finfo(dtype).eps, 1e-6)
    monkeypatch.setattr(nearness, "BAR", -1.0)  # far: generated, levels, views
    assert bool(adapt(model_of().to(dtype), x, y, views=2)(x.to(dtype)).isfinite().all())
    assert equal(adapt(model_of(), x.double(), y, **options), adapt(model_of(), x, y, **options))


def test_views_of_whole_numbers_are_whole_numbers() -> None:
    images = torch.randint(0, 256, (2, 1, 16, 16))
    seen = random_views(images, torch.Generator().manual_seed(0))
    wanted = random_views(images.float(), torch.Generator().manual_seed(0))
    assert seen.dtype == torch.int64
    torch.testing.assert_close(seen.float(), wanted, atol=0.51, rtol=0)


def test_torch_s_default_dtype_changes_nothing(make_task: Make) -> None:
    (x, y), model, options = make_task(), model_of(), {"views": 2, "steps": 2, "rate": 1e-4}
    wanted = adapt(model, x, y, **options)
    torch.set_default_dtype(torch.float64)
    try:
        got = adapt(model, x, y, **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal(got, wanted)
