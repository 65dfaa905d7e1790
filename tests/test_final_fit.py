"""The chosen student made once more, of all images."""

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import choices, final_fit
from hypercompress.choices import Chosen, followed, guarded
from hypercompress.compress import compress, finish
from hypercompress.curvature import measure
from hypercompress.curvature.fisher import Probing
from hypercompress.data.embedded import fashion_mnist_mini
from hypercompress.fidelity import Fidelity, compare
from hypercompress.generator import ANALYTIC
from hypercompress.guard import Judge
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.preparation.measuring import with_held_out
from hypercompress.report import BEFORE_FINAL_FIT, HELD_OUT, summary
from hypercompress.specs import Budget, Generation, Refit
from hypercompress.student import Student, build_student
from tests.small_models import batches, network

TENTH, HALF = Budget(params=0.1), Budget(params=0.5)


def teacher() -> nn.Module:
    return load_model(str(files("hypercompress") / "pretrained" / "fashion_mnist_teacher"))[0]


def images(count: int, *, train: bool = True) -> Tensor:
    pixels = torch.from_numpy(fashion_mnist_mini(train=train).images[:count]).float()
    return (pixels[:, None] / 255 - 0.286) / 0.353


class Latest:
    """A judge to whom each new student is nearer than all before it."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[nn.Module, float]] = {}

    def selected(self, student: nn.Module) -> Fidelity:
        kl = self.known.setdefault(id(student), (student, 1.0 / (1 + len(self.known))))[1]
        return Fidelity(1.0, kl, None, None, 1)

    confirmed = selected


def builder(plan: Plan) -> Callable[[Generation], Student]:
    return lambda generation: build_student(plan.teacher, plan.spec, generation)


def same(one: Student, other: Student) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def test_statistics_with_the_held_out_images_are_those_of_all() -> None:
    plan = prepare(teacher(), images(48).split(4), "kfac")
    whole = with_held_out(plan)
    assert plan.split is not None
    assert whole.split is not None
    assert (plan.split.samples, whole.split.samples) == (32, 48)
    at_once = measure(plan.teacher, plan.spec, images(48).split(4), probing=Probing.of(32))
    for name, sketch in whole.sketches.items():
        curvature, wanted = sketch.curvature, at_once[name]
        for part in ("signal", "mean", "gram"):
            torch.testing.assert_close(getattr(curvature, part), getattr(wanted, part), rtol=1e-4, atol=1e-5)
        if curvature.inputs is not None:
            torch.testing.assert_close(curvature.inputs.signal, wanted.inputs.signal, rtol=1e-4, atol=1e-5)
        # Other random signs, and a scale of the softened predictions for each part.
        traces = [float(c.fisher.diagonal().sum()) for c in (curvature, wanted)]
        assert 0.7 < traces[0] / traces[1] < 1.4


def test_the_held_out_images_are_probed_as_the_others_were_by_signs_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hypercompress.curvature.fisher.ENOUGH_GRADIENTS", 32)  # 16 alone would be drawn from twice
    plan = prepare(teacher(), images(48).split(4), "kfac")
    whole, split = with_held_out(plan).sketches, plan.split
    assert split is not None
    held_out = [*split.select, *split.confirm]
    apart, alike = (measure(plan.teacher, plan.spec, held_out, probing=Probing(), seed=seed) for seed in (1, 0))
    for name, sketch in plan.sketches.items():
        found = whole[name].curvature.fisher
        first = sketch.curvature.fisher
        torch.testing.assert_close(found, first.lerp(apart[name].fisher, 1 / 3), rtol=1e-4, atol=1e-7)
        assert sketch.curvature.logits or not torch.allclose(found, first.lerp(alike[name].fisher, 1 / 3), rtol=1e-3)


def test_noise_that_steadied_few_images_weighs_as_much_as_eight_of_all() -> None:
    plan = replace(prepare(teacher(), images(32).split(2), "kfac"), noise_share=0.25)
    whole = with_held_out(plan)
    assert plan.split is not None
    assert plan.split.samples == 24
    assert whole.noise_share == pytest.approx(8 / (32 + 8))
    name = next(iter(plan.sketches))
    before, after = plan.sketches[name].curvature.mean, whole.sketches[name].curvature.mean
    held = with_held_out(replace(plan, noise_share=0.0)).sketches[name].curvature.mean  # 24 before, 8 held out
    torch.testing.assert_close(after - before, (held - before) * (8 / 40) / (8 / 32), rtol=1e-3, atol=1e-6)


def test_directions_that_were_found_before_are_found_again() -> None:
    """Those of a search are kept in its generator."""
    plan = prepare(teacher(), images(32).split(2), "kfac")
    found = ANALYTIC["kfac"].directions(plan.spec, plan.sketches)
    whole = with_held_out(replace(plan, generator=replace(ANALYTIC["kfac"], known=found)))
    generation = whole.generator.generate(whole.spec, whole.sketches, TENTH)
    wanted = ANALYTIC["kfac"].generate(whole.spec, whole.sketches, TENTH)
    for name, factors in wanted.factors.layers.items():
        assert torch.equal(generation.factors.layers[name].product(), factors.product())


@pytest.mark.parametrize(
    ("generator", "options", "refit"),
    [
        ("kfac", {"forms": tuple(Refit), "norms": True, "bend": True}, Refit.BOTH),  # and the second tilt
        ("hypernet", {"forms": tuple(Refit), "norms": False, "bend": True}, Refit.BOTH),  # and all that it says
        ("hypernet", {"forms": (Refit.NONE,), "norms": True, "bend": False}, Refit.NONE),
        ("svd", {"forms": (Refit.NONE,), "norms": True, "bend": True}, Refit.NONE),  # and other moments
    ],
)
def test_the_same_choices_of_the_same_plan_make_the_same_student(
    generator: str, options: dict[str, Any], refit: Refit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "HARD", 0.0)
    monkeypatch.setattr(choices, "NORM_SAMPLES", 8)  # and not all that there are
    plan, budget, judge = prepare(teacher(), images(24).split(4), generator), Budget(params=0.05), Latest()
    chosen = guarded(plan, budget, builder(plan), judge, **options)  # type: ignore[arg-type]
    told = chosen._replace(finishing=replace(chosen.finishing, layers={}))  # as they come out of the refit anew
    again = followed(plan, budget, builder(plan), judge, told, norms=options["norms"])  # type: ignore[arg-type]
    assert chosen.finishing.refitted is refit
    estimated = options["norms"] and refit is Refit.NONE  # the norms of a refitted student are rebased
    assert chosen.finishing.norms == (choices.RE_ESTIMATED if estimated else "kept")
    assert chosen.finishing.tilt == (choices.TILTS[-1] if generator == "kfac" else 0.0)
    assert again.finishing == chosen.finishing
    assert again.generation.plan == chosen.generation.plan
    assert again.generation.strength == chosen.generation.strength
    same(again.student, chosen.student)


def test_few_images_make_a_nearer_student_if_none_is_left_out() -> None:
    model, test = teacher(), images(256, train=False)
    plan = prepare(model, images(24).split(2), "kfac")
    without, whole = (finish(plan, TENTH, refit=False, final_fit=final) for final in (False, True))
    kls = [compare(model, student, test.split(64)).kl for student in (without, whole)]
    assert kls[1] < 0.9 * kls[0]
    # What is told was measured on images that the student had not seen, so before them.
    assert whole.report["fidelity"] == without.report["fidelity"]
    assert without.report["measured_on"] == HELD_OUT
    assert whole.report["measured_on"] == BEFORE_FINAL_FIT
    assert whole.report["final_fit"] is True
    assert "final_fit" not in without.report
    assert "before the student was made once more" in summary(whole.report)


def test_it_is_not_done_where_it_would_be_further_away(monkeypatch: pytest.MonkeyPatch) -> None:
    made_worse: list[Chosen] = []

    def worse(*given: Any, norms: bool) -> Chosen:
        made = followed(*given, norms=norms)
        made_worse.append(made)
        with torch.no_grad():
            next(made.student.parameters()).mul_(3)
        return made

    plan = prepare(network(), batches(), "kfac")
    monkeypatch.setattr(final_fit, "followed", worse)
    kept, without = (finish(plan, HALF, final_fit=final) for final in (True, False))
    assert len(made_worse) == 1
    assert "final_fit" not in kept.report
    same(kept, without)


def test_nor_with_many_images_unlike_ones_or_a_budget_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_fit, "with_held_out", lambda _plan: pytest.fail("measured again"))
    model = network()
    assert "final_fit" not in compress(model, HALF, batches(), "kfac", renormalize=True).report
    plan = prepare(model, batches(), "kfac", latency_batch=1)
    assert "final_fit" not in finish(plan, Budget(latency=1.0), final_fit=True).report
    monkeypatch.setattr(final_fit, "MOST", 54)
    assert "final_fit" not in compress(model, HALF, batches(), "kfac").report


def test_the_judge_weighs_both_parts_by_their_images() -> None:
    model, parts = network(), torch.cat(batches()).split((8, 46))
    student = compress(model, HALF, batches(), "svd", refit=False, norms=False, final_fit=False)
    together = compare(model, student, [torch.cat(batches())]).kl
    assert Judge(model, parts[:1], parts[1:]).kl(student) == pytest.approx(together, rel=1e-5)
