"""What a support set says of a model: moments of every channel that can be adapted, from one forward pass.

For each site the mean and the variance over images and positions, which for a BatchNorm tell how far the new images are
from those it was trained on; and of the channels' means over positions the variance between and within classes, whose
ratio (Fisher 1936) tells which channels separate the new classes.

Shape letters: ``n`` images; ``c`` channels of a site; ``p`` positions; ``k`` classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hypercompress.running.hooks import hooked
from hypercompress.transfer.adaptable import Site


@dataclass(frozen=True)
class Moments:
    """Of one site, over a support set; float32.

    Args:
        mean, variance: over images and positions.
        between: variance of the class means of the channels' means over positions; classes count alike.
        within: mean variance of these inside a class; 0 if every class has one image.
    """

    mean: Float[Tensor, " c"]
    variance: Float[Tensor, " c"]
    between: Float[Tensor, " c"]
    within: Float[Tensor, " c"]


class Recorder:
    """Running sums of the sites of a model while it runs; float32, divided once at the end.

    Args:
        model: what runs.
        sites: of that model.
        classes: of the support set.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], classes: int) -> None:
        self.model, self.sites, self.classes = model, sites, classes
        self.sums: dict[str, list[Tensor]] = {}
        self.unread: dict[str, str] = {site.name: "it was never called" for site in sites}

    @contextmanager
    def batch(self, labels: Int[Tensor, " n"]) -> Iterator[None]:
        """Record the passes inside the block, of images with these labels. The hooks are gone afterwards."""
        named = F.one_hot(labels.long(), self.classes).float()
        handles = [
            self.model.get_submodule(site.module).register_forward_hook(self._hook(site, named)) for site in self.sites
        ]
        with hooked(handles):
            yield

    def _hook(self, site: Site, labels: Float[Tensor, "n k"]) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            with torch.no_grad():
                values = site.read(module, inputs[0], output).float()
                images, rows = len(labels), len(values)
                if rows % images:
                    self.unread[site.name] = f"it reads {rows} rows of {images} images"
                    return
                if rows > images:  # windows of an image, one after another
                    values = values.unflatten(0, (images, -1)).transpose(1, 2).flatten(2)
                pooled = values.mean(2)
                size = values.new_tensor(float(values.shape[0] * values.shape[2]))
                new = [size, values.sum((0, 2)), values.square().sum((0, 2)), labels.sum(0)]
                new += [labels.T @ pooled, labels.T @ pooled.square()]
                old = self.sums.get(site.name)
                self.sums[site.name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]
                self.unread.pop(site.name, None)

        return record

    def finish(self) -> dict[str, Moments]:
        """Moments by name of the site; `unread` says why some sites have none."""
        return {name: _moments(*sums) for name, sums in self.sums.items() if name not in self.unread}


def _moments(
    size: Tensor, total: Tensor, squares: Tensor, counts: Tensor, by_class: Tensor, squares_by_class: Tensor
) -> Moments:
    """Moments from sums."""
    mean, counts = total / size, counts[:, None]
    centres = by_class / counts
    spread = (squares_by_class / counts - centres.square()).clamp_min(0) * (counts / (counts - 1).clamp_min(1))
    variance = (squares / size - mean.square()).clamp_min(0)
    return Moments(mean, variance, centres.var(0, unbiased=False), spread.mean(0))
