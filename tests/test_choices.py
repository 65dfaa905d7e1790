"""What held-out images decide: the refit, the tilt of the allocation, the moments of norms."""

from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.choices import HARD, TILTS
from hypercompress.compress import compress, finish
from hypercompress.data.embedded import fashion_mnist_mini
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC, by_depth, weighted
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.reconstruction import reconstruct, refit_batch
from hypercompress.specs import Budget, Refit
from hypercompress.student import Student


def trained(images: int = 128) -> tuple[nn.Module, Tensor, Plan]:
    """A network that loses something, images of its data, and its plan."""
    teacher, _ = load_model(str(files("hypercompress") / "pretrained" / "fashion_mnist_teacher"))
    pixels = (torch.from_numpy(fashion_mnist_mini(train=True).images[:images]).float()[:, None] / 255 - 0.286) / 0.353
    return teacher, pixels, prepare(teacher, pixels.split(16), "kfac")


def refitted(plan: Plan, student: Student, form: Refit) -> Student:
    assert plan.split is not None
    if form is not Refit.NONE:
        batch = refit_batch(plan.spec, plan.split)
        reconstruct(plan.teacher, student, plan.spec, plan.sketches, batch, both=form is Refit.BOTH)
    return student


@pytest.mark.parametrize(("share", "taken"), [(0.05, True), (0.2, False)])
def test_reestimated_norms_are_taken_only_if_they_help(share: float, taken: bool) -> None:
    teacher, x, plan = trained()
    assert plan.split is not None
    kept, free = (
        compress(teacher, Budget(params=share), x.split(16), "svd", refit=False, norms=norms) for norms in (False, True)
    )
    before, after = (compare(teacher, s, plan.split.confirm).kl for s in (kept, free))
    assert (after < before) is taken
    assert after <= before
    assert free.report["norms"] == ("re-estimated" if taken else "kept")


def test_norms_are_estimated_from_some_of_the_images_and_only_where_much_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, x, plan = trained()
    assert plan.split is not None
    seen: list[int] = []
    monkeypatch.setattr("hypercompress.choices.NORM_SAMPLES", 40)
    monkeypatch.setattr(
        "hypercompress.choices.reestimate_norms", lambda _m, images, _f: seen.append(sum(map(len, images)))
    )
    lost = []
    for share in (0.05, 0.5):
        student = compress(teacher, Budget(params=share), x.split(16), "kfac", refit=False)
        lost.append(compare(teacher, student, plan.split.select).kl)
    assert lost[0] > HARD > lost[1]
    assert seen == [48]  # three batches of 16 have 40 samples


@pytest.mark.parametrize("form", ["both", "outputs"])
def test_a_refitted_student_keeps_its_norms(form: str) -> None:
    teacher, x, _ = trained()
    name = {"both": "svd", "outputs": "kfac"}[form]
    report = compress(teacher, Budget(params=0.05), x.split(16), name).report
    assert (report["refitted"], report["norms"]) == (form, "kept")


def test_a_refitted_student_computes_the_same_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    _, x, plan = trained()
    rebased = finish(plan, Budget(params=0.1))
    monkeypatch.setattr("hypercompress.choices.rebase_norms", lambda *_: None)
    as_before = finish(plan, Budget(params=0.1))
    assert rebased.report["refitted"] == as_before.report["refitted"] == "both"
    with torch.no_grad():
        torch.testing.assert_close(rebased(x), as_before(x), rtol=1e-3, atol=1e-3)
        wanted = as_before(x)
        apart = [(student.train()(x) - wanted).square().mean() for student in (rebased, as_before)]
    assert apart[0] < 0.2 * apart[1]


@pytest.mark.parametrize(
    ("share", "many", "tried", "taken"),
    [
        (0.1, 1, ["both"], "both"),  # with many images it is not asked whether less would have been more
        (0.2, 1, ["both", "outputs"], "none"),
        (0.1, 10**6, ["outputs", "both"], "both"),
    ],
)
def test_with_many_images_the_outputs_alone_are_refitted_only_if_both_factors_lost(
    share: float, many: int, tried: list[str], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, plan = trained()
    asked: list[str] = []

    def spy(*args: Any, both: bool) -> Any:
        asked.append("both" if both else "outputs")
        return reconstruct(*args, both=both)

    monkeypatch.setattr("hypercompress.choices.reconstruct", spy)
    monkeypatch.setattr("hypercompress.choices.MANY", many)
    student = finish(plan, Budget(params=share), norms=False)
    assert asked == tried
    assert student.report["refitted"] == taken


@pytest.mark.parametrize("differ", [True, False], ids=["lengths differ", "one length"])
def test_images_are_many_if_those_that_a_refit_can_join_are(differ: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sounds of many lengths one batch is refitted on, and that is few."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(1, 16, 9, stride=4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 12)
    ).eval()
    asked: list[bool] = []

    def spy(*args: Any, both: bool) -> Any:
        asked.append(both)
        return reconstruct(*args, both=both)

    monkeypatch.setattr("hypercompress.choices.reconstruct", spy)
    monkeypatch.setattr("hypercompress.choices.MANY", 64)
    sounds = [torch.randn(16, 1, 64 + 4 * index * differ) for index in range(12)]
    finish(prepare(model, sounds, "kfac"), Budget(params=0.5), norms=False)
    assert asked[:2] == [False, True] if differ else asked[0]


@pytest.mark.parametrize("both", [False, True])
def test_the_refit_is_the_one_that_held_out_images_favour(both: bool) -> None:
    """Students are made by hand; the guard is to take the one that wins on both of its splits."""
    (teacher, pixels, plan), seen = trained(), set()
    assert plan.split is not None
    for share in (0.1, 0.2):
        candidates = {}
        for form in Refit if both else (Refit.NONE, Refit.OUTPUTS):
            bare = finish(plan, Budget(params=share), refit=False, norms=False)
            candidates[form] = refitted(plan, bare, form)
        select, confirm = (
            {form: compare(teacher, s, images).kl for form, s in candidates.items()}
            for images in (plan.split.select, plan.split.confirm)
        )
        best = min(select, key=lambda form: select[form])
        expected = best if confirm[best] < confirm[Refit.NONE] else Refit.NONE
        student = finish(plan, Budget(params=share), norms=False, both=both)
        assert student.report["refitted"] == expected
        if not student.report["tilt"]:
            torch.testing.assert_close(student(pixels[:8]), candidates[expected](pixels[:8]))
        rows = {row["name"]: row["refitted"] for row in student.report["layers"]}
        assert {name for name, fitted in rows.items() if fitted is not None} == set(student.ranks)
        assert {rows[name] for name in student.ranks} <= {"none", "outputs", str(expected)}
        seen.add(expected)
    assert seen == {Refit.NONE, Refit.BOTH if both else Refit.OUTPUTS}


def test_the_allocation_is_tilted_where_held_out_images_favour_it() -> None:
    """The second tilt is tried only if the first was better, and the better one is what comes out."""
    (teacher, pixels, plan), seen = trained(256), set()
    assert plan.split is not None
    kfac = ANALYTIC["kfac"]
    for share in (0.03, 0.08, 0.5):
        budget, candidates, expected = Budget(macs=share), {}, 0.0
        for tilt in (0.0, *TILTS):
            bent = replace(plan, generator=weighted(kfac, by_depth(plan.spec, tilt)))
            candidates[tilt] = refitted(plan, finish(bent, budget, refit=False, norms=False), Refit.BOTH)
        select, confirm = (
            {tilt: compare(teacher, s, images).kl for tilt, s in candidates.items()}
            for images in (plan.split.select, plan.split.confirm)
        )
        student = finish(plan, budget, norms=False)
        hard = kfac.generate(plan.spec, plan.sketches, budget).plan.predicted_kl > HARD
        for tilt in TILTS if student.report["refitted"] == "both" and hard else ():
            if not (select[tilt] < select[expected] and confirm[tilt] < confirm[expected]):
                break
            expected = tilt
        assert student.report["tilt"] == expected
        assert student.report["budget"]["achieved"] <= share
        if student.report["refitted"] == "both":
            torch.testing.assert_close(student(pixels[:8]), candidates[expected](pixels[:8]))
        seen.add(expected > 0)
    assert seen == {False, True}
