"""Random views of the support images: what a head or a step may see beside the few images that there are.

A view is an image slightly turned, scaled and shifted, which leaves its label alone. A backbone that was trained on
many images hardly sees the difference; for a small one, or a far task, views are worth more than anything else that is
done here (LOG.md, 2026-11-27).

Shape letters: ``n`` images; ``c h w`` channels, height and width; ``d`` features; ``m`` the images and all their views.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from hypercompress.running.calling import device_of, evaluating
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.levels import Weighed, Weighing, factors
from hypercompress.transfer.nearness import Nearness
from hypercompress.transfer.ridge import Ridge, fit_ridge
from hypercompress.transfer.support import Support

VIEWS = 8  # of each image at least, where the caller does not say, and at most in a step
MOST_VIEWS = 32  # of each image, where the caller does not say
ROWS = 200  # views of all images together, where that is more than `VIEWS` of each and not above `MOST_VIEWS`
ROTATION = 10.0  # degrees, either way; as the next two drawn evenly
SCALE = 0.1  # of the logarithm of the size
SHIFT = 1 / 14  # of the height and the width
IN_STEPS = 1.5  # times as much in steps, which see each view once; for a head that is too much
MOST = 2**14  # images and views of one fit
FILLED = 64  # images of a step, as far as views can fill it
MOVED = 0.6  # see `look_again`


@dataclass(frozen=True)
class Look:
    """What the views were good for.

    Args:
        plain: the head on the images alone.
        count: views of each image that were asked for, or as many as there is room for.
        kept: whether the head is fitted on them too.
        why: in words.
        head: on the images and their views, of the same levels; ``None``: not fitted.
        moved: mean squared distance of the first view's last features from its image's, as a share of the images'
            variance; ``None`` if no view was made.
        passed: images that were run for it.
    """

    plain: Weighed
    count: int
    kept: bool
    why: str
    head: Ridge | None = None
    moved: float | None = None
    passed: int = 0


def random_views(
    images: Num[Tensor, "n c h w"], generator: torch.Generator, strength: float = 1.0
) -> Num[Tensor, "n c h w"]:
    """A view of each image, every one its own; what comes in from outside repeats the image's edge. Places are computed
    in single precision or better: in half, and in the whole numbers of images that a model scales itself, there are
    too few numbers for them.

    Args:
        generator: on the CPU, so that views are the same on every device.
        strength: times `ROTATION`, `SCALE` and `SHIFT`.
    """

    def draw(most: float) -> Tensor:
        drawn = torch.rand(len(images), generator=generator, dtype=torch.float32)  # whatever torch's default is
        return (2 * drawn - 1) * most * strength

    real = images.is_floating_point()
    sharp = images if real and images.dtype.itemsize >= torch.float32.itemsize else images.float()
    angle, size = draw(math.radians(ROTATION)), draw(SCALE).exp()
    height, width = images.shape[-2:]  # the grid counts both from -1 to 1, so that turning a wide image would shear it
    cos, sin = size * angle.cos(), size * angle.sin()
    rows = [torch.stack([cos, -sin * height / width, draw(2 * SHIFT)], 1)]
    rows += [torch.stack([sin * width / height, cos, draw(2 * SHIFT)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(sharp), list(images.shape), align_corners=False)
    seen = F.grid_sample(sharp, grid, padding_mode="border", align_corners=False)
    return (seen if real else seen.round()).to(images.dtype)


def views_of(images: int | None) -> int:
    """How many views of each of so many images a head sees where the caller does not say: few images bear more.

    Five of them gain up to four points from 32 views instead of 8 (LOG.md, 2026-11-29).
    """
    return VIEWS if images is None else max(VIEWS, min(MOST_VIEWS, ROWS // max(images, 1)))


def fitting(views: int, images: int) -> int:
    """So many views of each image, or as many as `MOST` has room for."""
    return max(0, min(views, MOST // images - 1))


def viewer(views: int, seed: int, strength: float = 1.0) -> Callable[[Tensor], Tensor]:
    """A new view of each image at every call, or the images themselves if there are to be no views."""
    generator = torch.Generator().manual_seed(seed)
    return (lambda images: random_views(images, generator, strength)) if views else (lambda images: images)


def step_viewer(views: int, seed: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same for the batches of steps and their labels: ``views`` new ones of each image, or as many as `FILLED`
    holds and at least one. The gradient of five images is so noisy that ten steps along it were worth nothing (LOG.md,
    2026-11-27).
    """
    change = viewer(views, seed, IN_STEPS)

    def several(
        images: Num[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> tuple[Num[Tensor, "m c h w"], Int[Tensor, " m"]]:
        count = max(1, min(views, FILLED // len(images)))
        return change(images.repeat(count, 1, 1, 1)), labels.repeat(count)

    return several


def views_in_steps(task: Nearness, views: int) -> int:
    """How many views of an image a step may see: ``views``, but `VIEWS` at most, or one on a near task, where several
    are worth nothing and take up to that many times as long (LOG.md, 2026-11-27).
    """
    return min(views, 1 if task is Nearness.NEAR else VIEWS)


def look_again(
    backbone: Backbone,
    plain: Weighed,
    task: Nearness,
    known: Float[Tensor, "n d"],
    support: Support,
    views: int,
    seed: int,
) -> Look:
    """A head fitted on the images and on ``views`` of each, in as many passes; one more where a loader may mix them.

    It is kept if it is no worse where an image and all its views are left out; with one image a class nothing can be
    left out. It is not even fitted on near tasks, where views cost up to 1.5 points (LOG.md, 2026-11-29), nor, on the
    last features alone, where the first view of the first batch (of the first two images at least) moves them by less
    than `MOVED` of these images' variance: backbones that hardly see the difference learn nothing from views (LOG.md,
    2026-11-27).

    Args:
        plain: the head on the images alone.
        known: the images' features, of all levels.
        views: of each image; fewer are made where all would be more than `MOST` together.

    Raises:
        NonFiniteError: NaN or infinity in the features of a view.
    """
    images, fresh = len(known), 0 if support.fixed else 1
    count = fitting(views, images)
    if not count:
        return Look(plain, 0, False, "not asked for" if not views else f"there are {images} images")
    if task is Nearness.NEAR:
        return Look(plain, count, False, "MODEL tells the new classes apart")
    change, device = viewer(count, seed), device_of(backbone)
    sets, labels = [list[Tensor]() for _ in range(1 + count)], list[Tensor]()
    moved, passed, last = None, 0, plain.weighing is Weighing.LAST
    with evaluating(backbone), torch.no_grad():
        for batch, named in support.on(device):
            start = sum(map(len, labels))
            labels.append(named)
            sets[0].append(backbone(batch) if fresh else known[start : start + len(batch)])
            passed += fresh * len(batch)
            for found in sets[1:]:
                found.append(backbone(change(batch)))
                passed += len(batch)
                if moved is None and start + len(batch) > 1:  # of one image there is no variance
                    moved = _moved(torch.stack([backbone.last(torch.cat(rows)) for rows in sets[:2]]))
                    if moved <= MOVED and last:
                        return Look(plain, count, False, "they hardly move the features", None, moved, passed)
    first = torch.cat(sets[0])
    every = torch.cat([first, *map(torch.cat, sets[1:])])
    every = backbone.last(every) if last else every
    weights = factors(first, backbone.levels, plain.weighing)
    head = fit_ridge(every, torch.cat(labels), support.classes, views=count, factors=weights)
    kept, why = True, f"one image a class: {'they move the features' if last else 'with maps they are used'}"
    if head.loo_loss is not None and plain.head.loo_loss is not None:
        kept, why = head.loo_loss <= plain.head.loo_loss, "leave-one-out loss"
    return Look(plain, count, kept, why, head, moved, passed)


def _moved(features: Float[Tensor, "sets n d"]) -> float:
    """Mean squared distance of the views from their images, as a share of the images' variance; 0 without any."""
    images = features[0].double()
    variance = (images - images.mean(0)).square().sum(1).mean()
    distance = (features[1:].double() - images).square().sum(2).mean()
    return float(distance / variance) if float(variance) > 0 else 0.0
