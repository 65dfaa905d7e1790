"""Reduced-rank regression of one layer's factors, on what its twin really reads and what the layer itself gives.

The regression is `factorize/regression.py`; here are the rows that it is made of, read from activations in pieces.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.factorize import add_outer, add_second_moment, mirror, projected, reduced_rank
from hypercompress.kinds import LowRank, Projected, as_weight, by_group, known_kind, matrix, weight_of
from hypercompress.running.memory import give_back
from hypercompress.specs import LayerSpec, Side, Sketch

LEAST_ROWS, ROWS = 2**14, 4  # rows that a regression on d inputs reads: the first, or so many times d if that is more
ENOUGH = 0.5  # rows for each input that a regression needs at least
MANY_INPUTS = 2048  # whose second moment is 32 MiB in float64
CHUNK = 2**23  # elements of inputs and outputs that are laid out as rows at once: 32 MiB in float32


class LayerRegression:
    """Puts the factors of reduced-rank regression into one layer of the student.

    Args:
        dense: the teacher's layer.
        centred: whether an intercept is free.
    """

    def __init__(self, layer: LayerSpec, dense: nn.Module, sketch: Sketch, ridge: float, *, centred: bool) -> None:
        self.layer, self.dense, self.sketch, self.ridge, self.centred = layer, dense, sketch, ridge, centred

    def __call__(self, module: LowRank, x: Tensor, wanted: Tensor) -> bool:
        """Whether the layer has new factors; it keeps its directions where the regression has too little to go by."""
        curvature, weight, source = self.sketch.curvature, self.sketch.weight, self.dense
        inner = module.reduce
        if isinstance(inner, Projected):  # its kernel is regressed on the channels that the projection gives
            if curvature is not None and curvature.side is Side.INPUT:
                return False  # G is known as seen through the whole kernel only
            x, source = inner.project(x.to(weight.dtype)), inner.core  # autocast gives inputs of another dtype
            inward = torch.linalg.pinv(matrix(inner.project).double()).to(weight.dtype)
            weight, inner = projected(weight, inward, self.layer.taps), inner.core
        reads = known_kind(source)  # the kernel of a low-rank layer has one, too
        if curvature is None or wanted.numel() // self.layer.out < ENOUGH * reads.matrix(source).shape[-1]:
            return False  # too few rows: directions that none of them shows would be lost
        moment, cross = self._moments(source, x, wanted)
        if moment.shape[-1] >= MANY_INPUTS:
            give_back()  # what the layers before have left, too broken up for matrices of this size
        factors = reduced_rank(weight, curvature, moment, cross, module.rank, self.ridge)
        for part, value in ((inner, factors.reduce), (module.expand, factors.expand)):
            weight_of(part).copy_(as_weight(part, value))
        return True

    def _moments(
        self, source: nn.Module, x: Tensor, wanted: Tensor
    ) -> tuple[Float[Tensor, "*g d d"], Float[Tensor, "*g o d"]]:
        """Second moment of the inputs, and with the outputs, over rows drawn from all of the batch."""
        reads, gives = known_kind(source), known_kind(self.dense)
        d = reads.matrix(source).shape[-1]
        count = wanted.numel() // self.layer.out
        share = min(1.0, max(LEAST_ROWS, ROWS * d) / count)
        x, wanted = reads.batched(x), gives.batched(wanted)
        pieces = min(len(x), -(-count * (d * self.layer.groups + self.layer.out) // CHUNK))
        generator = torch.Generator().manual_seed(0)
        total: Tensor | None = None
        origin: Tensor | None = None
        for inputs, outputs in zip(x.tensor_split(pieces), wanted.tensor_split(pieces), strict=True):
            rows = reads.input_rows(source, inputs)
            targets = by_group(gives.rows(outputs), self.layer.groups)
            if share < 1:
                kept = torch.randperm(rows.shape[-2], generator=generator)[: max(1, round(share * rows.shape[-2]))]
                rows, targets = (t.index_select(-2, kept.to(t.device)) for t in (rows, targets))
            rows, targets = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (rows, targets))
            seen = torch.cat([targets, rows, rows.new_ones(*rows.shape[:-1], 1)], -1)
            if origin is None:  # far from zero float32 would keep the distance alone
                origin = seen.mean(-2)
                origin[..., -1] = 0
            seen -= origin[..., None, :]
            total = seen.new_zeros(*seen.shape[:-2], seen.shape[-1], d + 1) if total is None else total
            add_second_moment(total, seen)
            del rows, targets, seen
        assert total is not None
        assert origin is not None
        mirror(total)
        total = total.double()  # of many inputs as much as all else: from here on in place
        total /= total[..., -1:, -1:].clone()
        moment, cross, mean, means = (
            total[..., -d - 1 : -1, :d],
            total[..., : -d - 1, :d],
            total[..., -1, :d],
            total[..., : -d - 1, d],
        )
        add_outer(moment, mean, mean, -1.0)
        add_outer(cross, means, mean, -1.0)
        if not self.centred:
            mean, means = mean + origin[..., -d - 1 : -1].double(), means + origin[..., : -d - 1].double()
            add_outer(moment, mean, mean)
            add_outer(cross, means, mean)
        return moment, cross
