"""A latency budget is met as measured, by students that are timed."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hypercompress import Budget, compress, targeting
from hypercompress.errors import BudgetError
from hypercompress.generator import ANALYTIC
from hypercompress.student import Student
from tests.battery.contract import noisy_hypernet
from tests.timeless import images, network, timed


@pytest.mark.parametrize(
    ("true", "share"),
    [
        (lambda p: p, 0.6),
        (lambda p: 0.3 + 0.7 * p, 0.7),  # less is saved than was predicted
        (lambda p: p**1.5, 0.6),  # more
        (lambda p: min(1.3, 1.2 * p + 0.1), 0.6),  # slower than the teacher at first
        (lambda p: min(1.3, 1.2 * p + 0.1), 0.9),
        (lambda p: 0.3 + 0.7 * min(1.0, max(0.0, 5 * p - 3.7)), 0.8),  # nearly all of it within a tenth of the way
        (lambda p: 0.3 + 0.7 * min(1.0, max(0.0, 5 * p - 3.7)), 0.6),
    ],
)
def test_the_target_is_met_as_measured(
    machine: Path, monkeypatch: pytest.MonkeyPatch, true: Callable[[float], float], share: float
) -> None:
    model, spec, sketches = timed(machine)
    monkeypatch.setattr(targeting, "times_of", lambda _teacher, student, *_: (1.0, true(student.plan.achieved)))
    generator, seen = ANALYTIC["kfac"], []
    budget = targeting.targeted(
        model, spec, sketches, generator, Budget(latency=share), lambda g: seen.append(g.plan) or g, images(1)
    )
    achieved = true(generator.generate(spec, sketches, budget).plan.achieved)
    assert 0.85 * share <= achieved <= share
    assert len(seen) <= targeting.ROUNDS


def test_a_target_that_no_student_meets_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec, sketches = timed(machine)
    monkeypatch.setattr(targeting, "times_of", lambda _teacher, student, *_: (1.0, 0.8 + 0.2 * student.plan.achieved))
    with pytest.raises(BudgetError, match=r"a latency budget of 0\.5; expected at least about 0\.8"):
        targeting.targeted(model, spec, sketches, ANALYTIC["kfac"], Budget(latency=0.5), lambda g: g, images(1))


def test_a_budget_of_all_the_time_is_met_by_the_model_itself_whatever_a_clock_says(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec, sketches = timed(machine)
    monkeypatch.setattr(targeting, "times_of", lambda *_: (1.0, 1.27))
    budget = targeting.targeted(
        model, spec, sketches, ANALYTIC["kfac"], Budget(latency=1.0), lambda g: pytest.fail("timed"), images(1)
    )
    assert ANALYTIC["kfac"].generate(spec, sketches, budget).plan.ranks == {}


@pytest.mark.parametrize(("share", "fastest"), [(0.99, 1.1), (0.9, 1.0), (0.9, 0.996)])
def test_where_no_student_is_faster_than_the_model_no_larger_share_is_advised(
    machine: Path, monkeypatch: pytest.MonkeyPatch, share: float, fastest: float
) -> None:
    model, spec, sketches = timed(machine)
    monkeypatch.setattr(targeting, "times_of", lambda *_: (1.0, fastest))
    wanted = (
        rf"budget of {share}; expected 1: no student .* is faster .*takes {fastest:.2f} .*; leave the model as it is"
    )
    with pytest.raises(BudgetError, match=wanted):
        targeting.targeted(model, spec, sketches, ANALYTIC["kfac"], Budget(latency=share), lambda g: g, images(1))


def test_the_student_of_a_hypernetwork_has_ranks_that_were_timed(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_ranks = []

    def times(_teacher: nn.Module, student: Student, *_: Any) -> tuple[float, float]:
        timed_ranks.append(dict(student.ranks))
        return 1.0, 0.58

    monkeypatch.setattr(targeting, "times_of", times)
    data = list(images(32).split(8))
    student = compress(network(), Budget(latency=0.6), data, noisy_hypernet(), latency_batch=2)
    assert timed_ranks == [dict(student.ranks)] * 2, "once to meet the target, once for the report"
    plain = compress(network(), Budget(latency=0.6), data, "kfac", latency_batch=2)
    assert timed_ranks[2] == timed_ranks[0] == dict(plain.ranks), "those of its start, not of what it says"


def test_report_says_what_was_measured(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targeting, "times_of", lambda *_: (2.0, 1.1))
    student = compress(network(), Budget(latency=0.6), [images(16)] * 3, "kfac", latency_batch=2)
    report = student.report
    assert report["budget"] == {"unit": "latency", "target": 0.6, "achieved": 0.55}
    assert report["latency"] == {
        "teacher_ms": 2.0,
        "student_ms": 1.1,
        "batch_size": 2,
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }
    assert student.ranks


@pytest.mark.parametrize(
    ("times", "achieved", "told"),
    [
        ([0.63], 0.63, False),
        ([0.9, 0.61], 0.61, False),  # something else ran for a while
        ([0.9, 0.7], 0.7, True),
        ([0.7, 0.9], 0.7, True),
    ],
)
def test_a_target_that_the_last_measurement_misses_is_told(
    machine: Path, monkeypatch: pytest.MonkeyPatch, times: list[float], achieved: float, told: bool
) -> None:
    left = [0.58, *times]  # with the first the target is met
    monkeypatch.setattr(targeting, "times_of", lambda *_: (1.0, left.pop(0)))
    missed = (
        rf"a latency budget of 0\.6 that the student misses: .* takes {achieved:.2f} of .*run again, or ask for less"
    )
    with pytest.warns(UserWarning, match=missed) if told else contextlib.nullcontext():
        student = compress(network(), Budget(latency=0.6), [images(16)] * 3, "kfac", latency_batch=2)
    assert not left
    assert student.report["budget"]["achieved"] == student.report["latency"]["student_ms"] == achieved


def test_the_model_itself_misses_no_target(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targeting, "times_of", lambda *_: (1.0, 1.27))
    student = compress(network(), Budget(latency=1.0), [images(16)] * 3, "kfac", latency_batch=2)
    assert not student.ranks
    assert student.report["budget"]["achieved"] == 1.0
    assert student.report["latency"]["student_ms"] == 1.27
