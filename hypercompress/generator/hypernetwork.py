"""The hypernetwork as a module and as a generator."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.allocation import allocate
from hypercompress.generator.analytic import AnalyticGenerator
from hypercompress.generator.config import HypernetConfig
from hypercompress.generator.emission import emit
from hypercompress.generator.encoder import Encoder
from hypercompress.generator.heads import Heads, Outputs
from hypercompress.generator.protocol import Sketches
from hypercompress.generator.start import Start, corrected, start_of
from hypercompress.running.calling import Progress
from hypercompress.specs import Budget, Generation, ModelSpec, Unit
from hypercompress.tokens import Known, Tokens, channel_features, tokenize


class Hypernetwork(nn.Module):
    """Transformer encoder and heads: tokens of one network in, bounded corrections of the analytic generator out.

    Shape: `Tokens` of n layers to `Outputs` of n layers. Before training all outputs are zero.
    """

    def __init__(self, config: HypernetConfig | None = None) -> None:
        super().__init__()
        self.config = config or HypernetConfig()
        self.encoder = Encoder(self.config)
        self.heads = Heads(self.config)

    def forward(self, tokens: Tokens, measured: bool) -> Outputs:
        layers, sketches = self.encoder(tokens)
        outputs: Outputs = self.heads(layers, sketches, measured)
        return outputs

    def channels(self, features: Float[Tensor, "m f_channel"], state: Float[Tensor, " width"]) -> Float[Tensor, " m"]:
        """Log change of the guessed curvature of each channel of one layer, from the layer's state."""
        return self.heads.channels(features, state)


def tokens_of(spec: ModelSpec, sketches: Sketches, start: Start, budget: Budget, refit: bool = False) -> Tokens:
    """Tokens at a budget, around the ranks of the analytic start; ``refit``: whether the student will be refitted."""
    plan = allocate(spec, start.energies, budget, nats=False, inputs=start.inputs)
    known = Known(start.curvatures, start.directions.outputs, start.energies, start.inputs)
    if budget.unit is Unit.LATENCY:  # it has learnt of multiply-accumulates only: those that the plan leaves
        saved = sum(
            layer.dense_macs - layer.cost(Unit.MACS, plan.ranks[layer.name], plan.input_ranks.get(layer.name))
            for layer in spec.candidates
            if layer.name in plan.ranks
        )
        plan, budget = replace(plan, unit=Unit.MACS), Budget(macs=1 - saved / max(1, spec.macs))
    return tokenize(spec, sketches, known, plan, budget, refit)


def channel_changes(
    network: Hypernetwork, spec: ModelSpec, sketches: Sketches, start: Start, outputs: Outputs
) -> dict[str, Float[Tensor, " m"]]:
    """Log changes of the guessed curvature of every layer's channels; without data only."""
    changes = {}
    for index, layer in enumerate(spec.candidates):
        guess = start.curvatures[layer.name].bare.flatten()
        features = channel_features(layer, sketches[layer.name], guess).to(outputs.states.device)
        changes[layer.name] = network.channels(features, outputs.states[index])
    return changes


class HypernetGenerator:
    """A meta-trained hypernetwork behind the interface of all generators.

    Args:
        network: the hypernetwork, in evaluation mode.
        strength: in [0, 1]; 0 gives the analytic start.
        name: as in the report.
        progress: as in `AnalyticGenerator`.
    """

    def __init__(
        self,
        network: Hypernetwork,
        strength: float = 1.0,
        name: str = "hypernet",
        progress: Progress | None = None,
    ) -> None:
        self.network, self.strength, self.name = network.eval(), strength, name
        self.progress = progress
        self._last: tuple[weakref.ref[ModelSpec], Sketches, Start] | None = None

    def generate(self, spec: ModelSpec, sketches: Sketches, budget: Budget) -> Generation:
        return self.options(spec, sketches, budget, (self.strength,))[0]

    @torch.no_grad()
    def options(
        self, spec: ModelSpec, sketches: Sketches, budget: Budget, strengths: Sequence[float], refit: bool = False
    ) -> list[Generation]:
        """One student per strength from a single pass of the network, for the guard to choose from.

        Args:
            refit: whether they will be refitted. Strength 0 does not depend on it.

        Raises:
            BudgetError: the budget is out of reach.
        """
        start = self._start(spec, sketches)
        outputs = self.network(tokens_of(spec, sketches, start, budget, refit), start.measured)
        found, changes = [], None
        if not start.measured:
            changes = channel_changes(self.network, spec, sketches, start, outputs)
            if min(strengths) > 0:  # every student has directions of its own
                start = start.without_directions()
        for strength in strengths:
            bent = start
            if changes is not None and strength > 0:
                bent = corrected(spec, sketches, start, {n: change * strength for n, change in changes.items()})
            emission = emit(spec, sketches, bent, outputs.scaled(strength), budget)
            found.append(Generation(emission.factors(), emission.plan, self.name, strength))
        return found

    def base(self, spec: ModelSpec, sketches: Sketches) -> AnalyticGenerator:
        """The analytic generator behind strength 0, with the teacher's directions."""
        start = self._start(spec, sketches)
        return replace(start.base, known=start.directions)

    def _start(self, spec: ModelSpec, sketches: Sketches) -> Start:
        """The guard asks twice of one teacher with data, and so does each budget of its plan: directions are worth
        keeping as long as the plan has its spec. They and the sketches hold the teacher's weights.
        """
        if self._last is not None and self._last[0]() is spec and self._last[1] is sketches:
            return self._last[2]
        self._last = None
        start = start_of(spec, sketches, self.progress)
        if start.measured:
            self._last = (weakref.ref(spec, self._forget), sketches, start)
        return start

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept of a teacher: a reference to its spec cannot be pickled."""
        return {**vars(self), "_last": None}

    def _forget(self, gone: "weakref.ref[ModelSpec]") -> None:
        """Called when nobody has the spec any more."""
        if self._last is not None and self._last[0] is gone:
            self._last = None
