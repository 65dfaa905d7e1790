"""Views in `adapt`: how many there are, in heads and in steps, and what the report says of them."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hypercompress import adapt
from hypercompress.saved.card import transfer_line
from hypercompress.transfer import nearness, views
from hypercompress.transfer.views import MOST_VIEWS, VIEWS, step_viewer, views_of

Make = Callable[..., Any]


class Unsized:
    """A loader of batches that does not say how many images it has."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_steps_see_views(make_task: Make, make_backbone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = make_backbone(classes=3)[0].model.requires_grad_(True), make_task()
    monkeypatch.setattr(views, "MOVED", float("inf"))  # the heads are the same
    with_views, without = (
        adapt(model, x, y, network="none", steps=2, rate=1e-4, follow=1, views=count, levels=False) for count in (1, 0)
    )
    assert not torch.equal(with_views(x), without(x))
    monkeypatch.setattr(views, "random_views", lambda images, *_: images)
    again = adapt(model, x, y, network="none", steps=2, rate=1e-4, follow=1, views=1, levels=False)
    assert torch.equal(again(x), without(x))


@pytest.mark.parametrize(
    ("images", "wanted"),
    [(None, VIEWS), (0, MOST_VIEWS), (1, MOST_VIEWS), (6, MOST_VIEWS), (7, 28), (20, 10), (25, VIEWS), (9999, VIEWS)],
)
def test_few_images_have_more_views(images: int | None, wanted: int) -> None:
    assert views_of(images) == wanted


def test_adapt_makes_as_many_views_as_the_images_bear(make_task: Make, make_backbone: Make) -> None:
    model, (x, y) = make_backbone(classes=3)[0].model, make_task(shots=2)
    left = adapt(model, x, y, network="none")
    asked = adapt(model, x, y, network="none", views=views_of(len(x)))
    assert left.report["transfer"]["views"]["count"] == MOST_VIEWS
    assert torch.equal(left(x), asked(x))
    loader = [(x[i : i + 2], y[i : i + 2]) for i in range(0, len(x), 2)]
    unsized = adapt(model, Unsized(loader), network="none", names=list("abc"))
    assert unsized.report["transfer"]["views"]["count"] == VIEWS, "how many images there are is not known"


@pytest.mark.parametrize("bar", [-1.0, 1e9])
@pytest.mark.parametrize("asked", [0, 1, 4, VIEWS + 1])
def test_steps_see_one_view_on_a_near_task_else_several(
    asked: int, bar: float, make_task: Make, make_backbone: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (x, y) = make_backbone(classes=3)[0].model.requires_grad_(True), make_task()
    monkeypatch.setattr(nearness, "BAR", bar)
    viewed = []

    def note(count: int, seed: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        viewed.append(count)
        return step_viewer(count, seed)

    monkeypatch.setattr(sys.modules["hypercompress.transfer.adapt"], "step_viewer", note)
    names = ["a", "b", "c"]
    student = adapt(model, x, y, network="none", steps=1, views=asked, names=names)
    assert viewed == [min(asked, VIEWS if bar < 0 else 1)]
    assert student.report["transfer"]["views"]["in_steps"] == viewed[0]


def test_the_student_has_the_head_that_was_kept(make_task: Make, make_backbone: Make) -> None:
    model = make_backbone(classes=3)[0].model
    kept = dict[bool, Any]()
    for seed in range(12):
        torch.manual_seed(seed)
        x, y = make_task(shots=2)
        for spoilt in (x, x.roll(3, -1)):
            student = adapt(model, spoilt, y, network="none", views=2, levels=False)
            kept.setdefault(student.report["transfer"]["views"]["kept"], (student, spoilt, y))
    assert set(kept) == {True, False}
    for known, (student, images, labels) in kept.items():
        alone = adapt(model, images, labels, network="none", views=0, levels=False)
        assert torch.equal(student(images), alone(images)) == (not known)
        told, left_out = student.report["transfer"], student.report["transfer"]["loo"]
        assert known == (left_out["views"]["loss"] <= left_out["plain"]["loss"])
        assert told["passes"] == 3
        assert ("2 views of each" in transfer_line(told)) == known
