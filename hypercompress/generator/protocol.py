"""What every generator is: spec, sketches and a budget in; factors and ranks out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hypercompress.errors import GeneratorError
from hypercompress.factorize import Frame
from hypercompress.specs import Budget, Generation, ModelSpec, Sketch

Sketches = Mapping[str, Sketch]
Frames = dict[str, Frame]


def without_data(name: str) -> GeneratorError:
    """Of a generator that needs data, without any."""
    return GeneratorError(
        f"received no calibration data; expected some for generator '{name}', which weighs directions by measured "
        "curvature; pass data (--data), or choose svd, prior or hypernet"
    )


@dataclass(frozen=True)
class Directions:
    """All directions of every candidate layer, best first.

    Args:
        outputs: of the layer's matrix, on its smaller side.
        inputs: of the input channels, for the layers that `LayerSpec.projects`.
    """

    outputs: Frames
    inputs: Frames


@runtime_checkable
class Generator(Protocol):
    """A method that generates a compact student. Analytic and learned ones differ in nothing else.

    Attributes:
        name: as on the command line and in the report.
    """

    @property
    def name(self) -> str: ...

    def generate(self, spec: ModelSpec, sketches: Sketches, budget: Budget) -> Generation:
        """Factors and ranks that meet ``budget``.

        Raises:
            BudgetError: unreachable. GeneratorError: the generator needs calibration data and the sketches have none.
        """
        ...
