"""Models whose `train` and `eval` write into weights: they come out as they went in, to the bit, and so do copies."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.inspection import inspect
from hypercompress.running.calling import evaluating
from hypercompress.running.copying import copy_of, weights_of
from tests.lookup import row


class Adapted(nn.Linear):
    """As the LoRA layers of loralib: merged for evaluation. In training mode it drops part of what it gets."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.down, self.up = nn.Parameter(torch.randn(2, width)), nn.Parameter(torch.randn(width, 2))
        self.merged = False

    def train(self, mode: bool = True) -> "Adapted":
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + (x @ self.down.T @ self.up.T) * (0.5 if self.training else 1.0)


class Branched(nn.Module):
    """A plain layer into which another branch is merged for evaluation, only where that is not the mode already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.branch = nn.Linear(width, width), nn.Parameter(torch.randn(width, width))

    def train(self, mode: bool = True) -> "Branched":
        if mode != self.training:
            self.layer.weight.data += (-1 if mode else 1) * self.branch
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y + x @ self.branch.T if self.training else y


KINDS = pytest.mark.parametrize("kind", [Adapted, Branched])
MODES = pytest.mark.parametrize("mode", ["training", "evaluation", "mixed"])


def made(kind: Callable[[int], nn.Module], mode: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(kind(20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 6)).train(
        mode != "evaluation"
    )
    if mode == "mixed":
        model[0].eval()
    return model, torch.randn(64, 20, generator=torch.Generator().manual_seed(1))


Seen = tuple[Tensor, list[Tensor], list[bool], list[int]]


def seen(model: nn.Module, x: Tensor) -> Seen:
    """What it computes, and its weights, training flags and the ids of its weights."""
    with torch.no_grad():
        weights = weights_of(model)
        flags = [module.training for module in model.modules()]
        return model(x), [tensor.clone() for tensor in weights], flags, list(map(id, weights))


def assert_same(one: Seen, other: Seen) -> None:
    assert torch.equal(one[0], other[0])
    assert all(map(torch.equal, one[1], other[1]))
    assert one[2] == other[2]


@KINDS
@MODES
def test_a_teacher_that_merges_is_left_as_it_was(kind: Callable[[int], nn.Module], mode: str) -> None:
    model, x = made(kind, mode)
    before = seen(model, x)
    with evaluating(model) as written:
        assert not any(module.training for module in model.modules())
        inside = model(x)
    assert_same(seen(model, x), before)
    assert written == {model[0].weight if kind is Adapted else model[0].layer.weight}
    student = compress(model, Budget(params=0.8), x.split(8), "kfac")
    assert student.ranks
    assert_same(seen(model, x), before)
    assert seen(model, x)[3] == before[3]
    with torch.no_grad():
        torch.testing.assert_close(inside, made(kind, mode)[0].eval()(x), rtol=1e-5, atol=1e-5)


@KINDS
@MODES
@pytest.mark.parametrize("shared", [True, False])
def test_copies_of_it_are_as_it_is(kind: Callable[[int], nn.Module], mode: str, shared: bool) -> None:
    model, x = made(kind, mode)
    before = seen(model, x)
    copied = copy_of(model, shared=weights_of(model) if shared else ())
    assert_same(seen(model, x), before)
    assert_same(seen(copied, x), before)
    assert (seen(copied, x)[3] == before[3]) == shared
    if not shared:  # in both modes
        for switch in ("train", "eval", "train"):
            getattr(copied, switch)()
            getattr(model, switch)()
            assert torch.equal(copied(x), model(x))


@KINDS
@MODES
def test_what_is_learned_meanwhile_stays(kind: Callable[[int], nn.Module], mode: str) -> None:
    (model, x), (other, _) = made(kind, mode), made(kind, mode)
    with evaluating(model), torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    other.eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(model.eval()(x), other(x), rtol=1e-4, atol=1e-4)


def test_a_layer_into_which_the_model_merges_is_unsupported() -> None:
    for mode in ("training", "evaluation"):
        model, x = made(Branched, mode)
        layer = row(inspect(model, x), "0.layer")
        assert layer.reason == "its weight is read directly by the model's train() or eval()"
        student = compress(model, Budget(params=0.8), x.split(8), "kfac")
        assert set(student.ranks) <= {"2", "4"}
        with torch.no_grad():  # merging goes on in the student
            torch.testing.assert_close(student.train().eval()(x), student.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_flag_that_is_set_on_weights_is_no_reading() -> None:
    class Freezing(nn.Sequential):
        def train(self, mode: bool = True) -> "Freezing":
            super().train(mode)
            self[0].requires_grad_(False)
            return self

    spec = inspect(Freezing(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(2, 8))
    assert len(spec.candidates) == 2


@KINDS
@MODES
def test_a_student_is_saved_as_it_is_loaded(kind: Callable[[int], nn.Module], mode: str, tmp_path: Path) -> None:
    model, x = made(kind, mode)
    student = compress(model, Budget(params=0.9), example=x, generator="svd").train(mode == "training")
    state = {name: value.clone() for name, value in student.state_dict().items()}
    student.save_pretrained(tmp_path / "student")
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    loaded = from_pretrained(tmp_path / "student", skeleton=made(kind, mode)[0])
    torch.testing.assert_close(loaded.eval()(x), student.eval()(x))
