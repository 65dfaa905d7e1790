"""Whether a layer's twin would do what the layer does: a model may hold it by a reference that no registered module is,
or look at its class.

A plain Python list still points to the dense layer after the twin has taken its registered place: the student would
compute as before, and another thing after a reload. A global points to the layer of the model that was copied. And
where the forward asks for ``isinstance(self.layer, nn.Linear)`` it takes another branch: a twin is none.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.errors import ModelError
from hypercompress.kinds import low_rank_like
from hypercompress.packed.trials import alike, fitting, passed, tried
from hypercompress.packed.unpacking import replace_module
from hypercompress.running.calling import ForwardFn, call_model, computing, keeping_random_state
from hypercompress.running.copying import copy_of, weights_of
from hypercompress.specs import LayerSpec, ModelSpec

REASON = "the model runs it by a reference that is no registered module (a list?); register it"
ANOTHER = "the model computes another thing when a low-rank layer is in its place (does it ask for the class?)"


@torch.no_grad()
def replaceable(
    model: nn.Module,
    spec: ModelSpec,
    example: Any,
    forward_fn: ForwardFn | None = None,
    output: Tensor | None = None,
) -> ModelSpec:
    """The spec, in which a layer is unsupported whose twin would not be called as often as itself, or with whose twin
    the model computes another thing though the two compute the same.

    Args:
        model: left as it was; a copy runs, of its structure only.
        example: the batch that ``spec`` was made with.
        output: what the model gives for it in evaluation mode, if that is known.

    Raises:
        ModelError: a copy of the model runs a layer of the model.
    """
    trial = _Trial(model, example, forward_fn or call_model, output)
    if trial.same(spec.candidates):
        return spec
    listed = {layer.name for layer in spec.candidates if trial.missed[layer.name]}
    others = [layer for layer in spec.candidates if layer.name not in listed]
    fits = {layer.name for layer in fitting(trial.same, others)}
    return spec.without(listed, REASON).without({layer.name for layer in others} - fits, ANOTHER)


class _Trial:
    """Runs a copy of a model in which twins stand for layers: of the low-rank class, and computing what the layer does.

    Args:
        model: its layers must not run.
        output: what it gives for the example; ``None``: its copy is run for that.
    """

    def __init__(self, model: nn.Module, example: Any, forward_fn: ForwardFn, output: Tensor | None) -> None:
        self.model, self.copied = model, copy_of(model, shared=weights_of(model))
        self.example, self.forward_fn = example, forward_fn
        self.calls, self.missed, self.strays = Counter[str](), Counter[str](), Counter[str]()
        self.dense = passed(self.copied, example, forward_fn) if output is None else output

    def same(self, layers: Sequence[LayerSpec]) -> bool:
        """Whether the twins of these layers are called as often as they are, and change nothing.

        Raises:
            ModelError: as `replaceable`.
        """
        output = self._with_twins(layers)
        if self.strays:
            raise ModelError(
                f"received a model whose copy does not run its own {next(iter(self.strays))} (does it reach the "
                "original's by a global?); expected one that can be copied; let its forward reach its layers through "
                "self"
            )
        called = all(self.calls[layer.name] == layer.calls for layer in layers)
        return called and output is not None and (alike(output, self.dense) or not self._repeats)

    @cached_property
    def _repeats(self) -> bool:
        """Whether the model computes the same each time; else outputs say nothing."""
        return alike(passed(self.copied, self.example, self.forward_fn), self.dense)

    def _with_twins(self, layers: Sequence[LayerSpec]) -> Tensor | None:
        """What the model gives; ``None`` if it fails."""
        for counts in (self.calls, self.missed, self.strays):
            counts.clear()
        with ExitStack() as stack:
            for name, path in ((layer.name, path) for layer in layers for path in layer.paths):
                dense = self.copied.get_submodule(path)
                stack.enter_context(computing(self._twin(dense, path), self._counted(dense, name)))
                stack.callback(replace_module, self.copied, path, dense)
                for module, counts in ((dense, self.missed), (self.model.get_submodule(path), self.strays)):
                    stack.callback(module.register_forward_hook(_counting(counts, name)).remove)
            return tried(self.copied, self.example, self.forward_fn)

    def _twin(self, dense: nn.Module, path: str) -> nn.Module:
        """Put into the layer's place. What it holds is not the layer's, which shows if it is read."""
        with keeping_random_state(self.copied):
            twin = low_rank_like(dense, 1)
        replace_module(self.copied, path, twin)
        return twin

    def _counted(self, dense: nn.Module, name: str) -> Callable[..., Tensor]:
        """The forward of a layer, counted, and without the hooks that it has now or will have."""
        bare = copy.copy(dense)
        bare._forward_hooks = OrderedDict()

        def forward(_: nn.Module, *args: Any, **named: Any) -> Tensor:
            self.calls[name] += 1
            output: Tensor = bare(*args, **named)
            return output

        return forward


def _counting(counts: Counter[str], name: str) -> Callable[..., None]:
    return lambda *_: counts.update([name])
