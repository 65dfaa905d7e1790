"""timm models as data: building one from a name and arguments, reading its weights, recognising it again."""

from hypercompress.architecture.levels import Levels, ReadsLevels, read_last, read_levels
from hypercompress.architecture.loading import load_timm
from hypercompress.architecture.recognition import architecture_of
from hypercompress.architecture.record import Architecture, build
from hypercompress.architecture.weights import read_weights
from hypercompress.noted import own_input_size

__all__ = [
    "Architecture",
    "Levels",
    "ReadsLevels",
    "architecture_of",
    "build",
    "load_timm",
    "own_input_size",
    "read_last",
    "read_levels",
    "read_weights",
]
