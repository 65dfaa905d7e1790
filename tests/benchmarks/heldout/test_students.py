"""The students of the held-out program: every start has the budget, and none reads what it must not."""

import pytest
import torch
from torch import nn

from benchmarks import heldout
from benchmarks.protocol import students
from benchmarks.protocol.budgets import Cell
from benchmarks.protocol.methods import (
    CLOSED_FORMS,
    ONLY_DISTILLED,
    SYNTHETIC,
    Case,
    table,
)
from benchmarks.protocol.students import Starts, from_scratch, protected
from benchmarks.protocol.subject import Subject
from hypercompress.architecture import load_timm
from hypercompress.student import low_rank_layers


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_start_has_the_budget(starts: Starts, subject: Subject) -> None:
    (cell,) = starts.cells
    whole = count(subject.teacher)
    cases = table([*heldout.METHODS, "hypernet-unguarded", "hypernet-noise"], [0])
    for case in [*cases, Case("hypernet", "images", 2), *(Case(m, "images", 2) for m in ONLY_DISTILLED)]:
        start = starts.make(case, cell)
        assert start.network is not None, (case, start.note)
        size = count(start.network)
        if case.method == "torch-pruning":
            assert count(starts.make(Case("kfac", "images", 0), cell).network or nn.Identity()) <= size < whole
        else:
            assert size <= cell.budget.share * whole
        assert torch.isfinite(start.network(subject.test.images[:2])).all()


def test_steps_start_from_the_student_as_generated_or_refitted(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def spy(_self: Starts, method: str, _statistics: str, _cell: Cell, *, refit: bool) -> students.Start:
        asked.append((method, refit))
        return students.Start(None)

    monkeypatch.setattr(Starts, "_make", spy)
    for method, steps in (("kfac", 0), ("kfac", 2), ("kfac-refitted", 2), ("kfac-norms", 2)):
        starts.make(Case(method, "images", steps), starts.cells[0])
    assert asked == [("kfac", True), ("kfac", False), ("kfac-refitted", True), ("kfac-norms", True)]


def test_methods_without_images_read_none(starts: Starts, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Subject, seed: int) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr(Subject, "draw", refuse)
    for method in (*CLOSED_FORMS, "hypernet", "hypernet-no-channels", *SYNTHETIC):
        assert starts.make(Case(method, "none", 0), starts.cells[0]).network is not None
    with pytest.raises(AssertionError, match="images were read"):
        starts.make(Case("kfac", "images", 0), starts.cells[0])


def test_random_weights_have_nothing_of_the_teacher(starts: Starts, subject: Subject) -> None:
    kfac = starts.make(Case("kfac", "images", 2), starts.cells[0]).network
    assert kfac is not None
    fresh, again, other = (from_scratch(kfac, subject.architecture, seed) for seed in (0, 0, 1))
    shapes = [[(n, p.shape) for n, p in network.named_parameters()] for network in (kfac, fresh)]
    assert shapes[0] == shapes[1]
    states = [network.state_dict() for network in (kfac, fresh, again, other)]
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    for name, layer in low_rank_layers(fresh).items():
        assert not torch.equal(layer.reduce.weight, kfac.get_submodule(name).reduce.weight)  # type: ignore[union-attr]
    changed = [n for n, p in kfac.named_parameters() if not torch.equal(p, states[1][n])]
    assert changed == [n for n, _ in kfac.named_parameters()]
    assert any(not torch.equal(states[1][name], states[3][name]) for name in states[1])


def test_a_network_that_pruning_cannot_cut_is_named(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a shape\nthat does not fit")

    monkeypatch.setattr(students, "prune", fail)
    start = starts.make(Case("torch-pruning", "images", 0), starts.cells[0])
    assert start.network is None
    assert start.note == "Torch-Pruning: RuntimeError: a shape that does not fit"


def test_heads_of_attention_are_not_cut() -> None:
    model, _ = load_timm("test_vit", model_args={"num_classes": 3}, pretrained=False)
    names = protected(model)
    assert names[-1] == "head"
    assert len(names) == 1 + sum(name.endswith("qkv") for name, _ in model.named_modules()) > 1
