"""Random views: what they are, and when a head is fitted on them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hypercompress.architecture import Levels, read_levels
from hypercompress.errors import NonFiniteError
from hypercompress.transfer import Ridge, fit_ridge, views
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.levels import Weighed, Weighing, factors
from hypercompress.transfer.nearness import Nearness
from hypercompress.transfer.support import Support
from hypercompress.transfer.views import (
    FILLED,
    IN_STEPS,
    MOVED,
    look_again,
    random_views,
    step_viewer,
    viewer,
)

Make = Callable[..., Any]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(height: int, width: int, y: float, x: float) -> Tensor:
    """A round spot of Gaussian brightness [1, 1, h, w] at a place in pixels from the middle."""
    rows, columns = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    return torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)[None, None]


def place(image: Tensor) -> Tensor:
    """Where the brightness of an image [1, h, w] lies, in pixels from the middle: y, x."""
    height, width = image.shape[-2:]
    weight = image[0] / image[0].sum()
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    return torch.stack([(weight.sum(1) * rows).sum(), (weight.sum(0) * columns).sum()])


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_a_view_is_a_turn_a_scale_and_a_shift(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spots keep their distance under turns and shifts, in wide images too, and lose or gain at most the scale."""
    a, b = blob(*size, -8, 0), blob(*size, 0, 10)
    apart = float((place(a[0]) - place(b[0])).norm())
    for scale in (0.0, 0.1):
        monkeypatch.setattr(views, "SCALE", scale)
        found = []
        for seed in range(20):
            first, second = (random_views(x, seeded(seed))[0] for x in (a, b))
            found.append(float((place(first) - place(second)).norm()) / apart)
        least, most = min(found), max(found)
        assert 0.9 * (1 - scale) < least < 1.01
        assert 0.99 < most < 1.12
        assert (most - least < 0.02) == (scale == 0)


def test_shifts_and_turns_stay_within_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "SCALE", 0.0)
    middle, above = blob(56, 84, 0, 0), blob(56, 84, -10, 0)
    shifts, angles = [], []
    for seed in range(60):
        centre, up = (place(random_views(x, seeded(seed))[0]) for x in (middle, above))
        shifts.append(centre.abs())
        angles.append(float(torch.atan2(*(up - centre).flip(0).unbind()).rad2deg().add(180).remainder(360).sub(180)))
    furthest = torch.stack(shifts).max(0).values
    assert 56 / 14 * 0.7 < float(furthest[0]) < 56 / 14 * 1.2
    assert 84 / 14 * 0.7 < float(furthest[1]) < 84 / 14 * 1.2
    assert 7 < max(abs(abs(angle) - 180) for angle in angles) < 11


def test_every_image_has_its_own_view_and_a_seed_gives_the_same() -> None:
    images = torch.randn(1, 3, 16, 16).repeat(4, 1, 1, 1)
    first = random_views(images, seeded())
    assert torch.equal(first, random_views(images, seeded()))
    assert all(not torch.equal(first[i], first[j]) for i in range(4) for j in range(i))
    assert first.dtype == images.dtype
    assert random_views(images.double(), seeded()).dtype == torch.float64
    again = viewer(2, seed=0)
    assert torch.equal(again(images), first)
    assert not torch.equal(again(images), first), "the next call draws new ones"
    assert viewer(0, seed=0)(images) is images
    torch.testing.assert_close(random_views(images, seeded(), 0.0), images)


@pytest.mark.parametrize(
    ("views", "images", "each"), [(8, 5, 8), (8, 20, 3), (20, 5, 12), (1, 5, 1), (8, 64, 1), (8, 80, 1)]
)
def test_a_step_is_filled_with_new_views(views: int, images: int, each: int) -> None:
    x, y = torch.randn(images, 1, 12, 12), torch.arange(images)
    change = step_viewer(views, seed=0)
    seen, labels = change(x, y)
    assert torch.equal(seen, random_views(x.repeat(each, 1, 1, 1), seeded(), IN_STEPS))
    assert torch.equal(labels, y.repeat(each))
    assert not torch.equal(change(x, y)[0], seen), "the next step draws new ones"
    assert len(seen) <= max(FILLED, images)


def test_without_views_a_step_sees_the_images() -> None:
    x, y = torch.randn(5, 1, 12, 12), torch.arange(5)
    seen, labels = step_viewer(0, seed=0)(x, y)
    assert torch.equal(seen, x)
    assert torch.equal(labels, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("side", [20, 224])
def test_what_comes_in_from_outside_repeats_the_edge(side: int, dtype: torch.dtype) -> None:
    flat = torch.full((5, 1, side, side), 0.7, dtype=dtype)
    torch.testing.assert_close(random_views(flat, seeded()), flat)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_views_in_half_precision_are_those_in_single(dtype: torch.dtype) -> None:
    images = torch.randn(2, 1, 96, 96).to(dtype)
    found = random_views(images, seeded())
    assert found.dtype == dtype
    assert torch.equal(found, random_views(images.float(), seeded()).to(dtype))


def judged(head: Ridge) -> tuple[Weighed, Nearness]:
    """This head, on the last features, of a task of which nothing is known."""
    return Weighed(Weighing.LAST, head, "", {}), Nearness.UNKNOWN


def look(make_backbone: Make, shots: int) -> tuple[Any, Backbone, Tensor, Tensor]:
    backbone, _ = make_backbone()
    torch.manual_seed(0)
    labels = torch.arange(3 * shots) % 3
    x = torch.randn(3, 1, 32, 32)[labels] + torch.randn(len(labels), 1, 32, 32)
    with torch.no_grad():
        known = backbone(x)
    plain = fit_ridge(known, labels, 3)
    return look_again(backbone, *judged(plain), known, Support([(x, labels)], 3), 4, 0), backbone, x, labels


def test_the_head_is_that_of_the_images_and_their_views(make_backbone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOVED", -1.0)  # whatever the features say
    found, backbone, x, labels = look(make_backbone, shots=4)
    change = viewer(4, 0)
    with torch.no_grad():
        rows = torch.cat([backbone(x), *(backbone(change(x)) for _ in range(4))])
    wanted = fit_ridge(rows, labels, 3, views=4)
    torch.testing.assert_close(found.head.weight, wanted.weight)
    plain = fit_ridge(rows[: len(x)], labels, 3)
    assert (found.count, found.why) == (4, "leave-one-out loss")
    assert found.kept == (wanted.loo_loss <= plain.loo_loss)
    images = rows[: len(x)].double()
    apart = (rows[len(x) : 2 * len(x)].double() - images).square().sum(1).mean()
    assert found.passed == 4 * len(x)
    assert found.moved == pytest.approx(float(apart / (images - images.mean(0)).square().sum(1).mean()))


@pytest.mark.parametrize("moved", [0.9 * MOVED, 1.1 * MOVED])
@pytest.mark.parametrize("shots", [1, 2])
def test_views_that_hardly_move_the_features_are_no_use(
    shots: int, moved: float, make_backbone: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_moved", lambda features: moved)
    found, _, x, _ = look(make_backbone, shots=shots)
    if moved < MOVED:
        assert (found.kept, found.why, found.head) == (False, "they hardly move the features", None)
        assert found.passed == len(x), "one view, and no more"
    elif shots == 1:
        assert (found.kept, found.why) == (True, "one image a class: they move the features")
        assert found.head.loo_loss is None
    else:
        assert found.why == "leave-one-out loss"


@pytest.mark.parametrize("task", list(Nearness))
@pytest.mark.parametrize("weighing", [Weighing.LAST, Weighing.EVEN])
def test_classes_that_the_model_tells_apart_need_no_views(
    task: Nearness, weighing: Weighing, make_backbone: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MOVED", -1.0)  # whatever the features say
    backbone, _ = make_backbone()
    torch.manual_seed(0)
    labels = torch.arange(6) % 3
    x = torch.randn(6, 1, 32, 32)
    with torch.no_grad():
        known = backbone(x)
    plain, near = Weighed(weighing, fit_ridge(known, labels, 3), "", {}), task is Nearness.NEAR
    found = look_again(backbone, plain, task, known, Support([(x, labels)], 3), 2, 0)
    assert found.plain is plain
    assert (found.why == "MODEL tells the new classes apart") == near
    assert found.passed == (0 if near else 12)
    assert not (near and found.kept)
    assert (found.moved is None) == near


def test_batches_of_one_image_are_judged_two_at_least_together(
    make_backbone: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, _ = make_backbone()
    x, labels = torch.randn(6, 1, 32, 32), torch.arange(6) % 3
    with torch.no_grad():
        known = backbone(x)
    single, plain = Support([(x[i : i + 1], labels[i : i + 1]) for i in range(6)], 3), fit_ridge(known, labels, 3)
    for bar, why, passed in ((-1.0, "leave-one-out loss", 12), (1e9, "they hardly move the features", 3)):
        monkeypatch.setattr(views, "MOVED", bar)
        found = look_again(backbone, *judged(plain), known, single, 2, 0)
        assert (found.why, found.passed) == (why, passed), "two views of the first image, and one of the second"
        change = viewer(2, 0)
        with torch.no_grad():
            seen = [backbone(change(x[:1])), backbone(change(x[:1])), backbone(change(x[1:2]))]
        apart = (torch.cat([seen[0], seen[2]]) - known[:2]).double().square().sum(1).mean()
        variance = (known[:2] - known[:2].mean(0)).double().square().sum(1).mean()
        assert found.moved == pytest.approx(float(apart / variance), rel=1e-4)


def test_a_loader_that_mixes_is_read_with_its_views(make_backbone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that are known belong to another order; the head is that of the batches in memory all the same."""
    monkeypatch.setattr(views, "MOVED", -1.0)
    monkeypatch.setattr(views, "random_views", lambda images, *_: images.flip(-1))  # the same in every order
    backbone, _ = make_backbone()
    x, labels = torch.randn(12, 1, 32, 32), torch.arange(12) % 3
    with torch.no_grad():
        known = backbone(x)
    plain, order = fit_ridge(known, labels, 3), torch.randperm(12)
    kept = look_again(backbone, *judged(plain), known, Support([(x, labels)], 3), 2, 0)
    mixed = look_again(backbone, *judged(plain), known, Support(((x[order], labels[order]),), 3), 2, 0)
    torch.testing.assert_close(mixed.head.weight, kept.head.weight, rtol=1e-4, atol=1e-6)
    assert (kept.passed, mixed.passed) == (24, 36)


def test_levels_weigh_by_the_images_as_they_are(make_backbone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the views do to the spread of a level does not count: here they are a hundred times as bright."""
    monkeypatch.setattr(views, "random_views", lambda images, *_: 100 * images)
    backbone, _ = make_backbone()
    x, labels = torch.randn(12, 1, 32, 32), torch.arange(12) % 3
    read_levels(backbone.model, Levels(backbone.model.num_features, (0, 3), (32, 192), (2, 1)))
    with torch.no_grad():
        known, seen = backbone(x), backbone(100 * x)
    scales = factors(known, backbone.levels, Weighing.EVEN)
    plain = Weighed(Weighing.EVEN, fit_ridge(known, labels, 3, factors=scales), "", {})
    found = look_again(backbone, plain, Nearness.FAR, known, Support([(x, labels)], 3), 1, 0)
    wanted = fit_ridge(torch.cat([known, seen]), labels, 3, views=1, factors=scales)
    assert found.head is not None
    torch.testing.assert_close(found.head.weight, wanted.weight)


def test_too_many_images_have_fewer_views_or_none(make_backbone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST", 40)
    assert look(make_backbone, shots=4)[0].count == 2, "12 images, three sets of them in 40"
    found = look(make_backbone, shots=10)[0]
    assert (found.count, found.kept, found.why, found.head) == (0, False, "there are 30 images", None)


def test_views_of_not_a_number_are_named(make_backbone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "random_views", lambda images, *_: images / 0)
    with pytest.raises(NonFiniteError, match="with NaN or infinity"):
        look(make_backbone, shots=2)
