"""What a preparation is given, beside images, is refused here before anything runs: each as any Python value."""

from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from hypercompress.errors import BenchmarkError, GeneratorError, ModelError
from hypercompress.generator import Generator
from hypercompress.generator.registry import NAMES
from hypercompress.kinds import kind_of


def require_given(model: nn.Module, generator: Any, latency_batch: Any) -> None:
    """Raises what the functions below do."""
    require_real(model)
    require_generator(generator)
    require_samples(latency_batch)


def require_real(model: nn.Module) -> None:
    """Raises ModelError for a layer to factor whose numbers have eight bits: torch does not multiply by such. A class
    that turns them into others by itself is of no known kind, and may have them.
    """
    layers = {name: module for name, module in model.named_modules() if kind_of(module) is not None}
    for name, layer in layers.items():
        for part, tensor in layer.named_parameters(recurse=False):
            if tensor.is_floating_point() and tensor.itemsize < 2:
                raise ModelError(
                    f"received a model whose {'.'.join(filter(None, (name, part)))} is of {tensor.dtype}; expected "
                    "numbers of 16 bits or more, which torch multiplies; pass the model as it was before it was "
                    "quantized, or model.float()"
                )


def require_generator(generator: Any) -> None:
    """Raises GeneratorError for what is neither a name or a folder nor a `Generator`, such as None or a class."""
    if isinstance(generator, type) or not isinstance(generator, (str, Path, Generator)):
        raise GeneratorError(
            f"received {generator!r} as the generator; expected one of {', '.join(NAMES)}, the folder of a "
            "hypernetwork, or a Generator with a name and generate(); pass 'auto' for the default"
        )


def require_samples(latency_batch: Any) -> None:
    """Raises BenchmarkError if a batch to be timed has no whole number of samples, 1 or more; None: none is timed."""
    if latency_batch is None or (isinstance(latency_batch, Integral) and int(latency_batch) >= 1):
        return
    raise BenchmarkError(
        f"received latency_batch={latency_batch!r}; expected a whole number from 1, the samples of the batch that is "
        "timed; pass one"
    )
