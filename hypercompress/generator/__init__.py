"""Generators: analytic and learned, behind one interface."""

from hypercompress.generator.analytic import ANALYTIC, AnalyticGenerator
from hypercompress.generator.config import HypernetConfig
from hypercompress.generator.hypernetwork import HypernetGenerator, Hypernetwork
from hypercompress.generator.protocol import Generator
from hypercompress.generator.registry import load_generator, load_hypernetwork, save_hypernetwork
from hypercompress.generator.weighted import WeightedKfac, by_depth, weighted

__all__ = [
    "ANALYTIC",
    "AnalyticGenerator",
    "Generator",
    "HypernetConfig",
    "HypernetGenerator",
    "Hypernetwork",
    "WeightedKfac",
    "by_depth",
    "load_generator",
    "load_hypernetwork",
    "save_hypernetwork",
    "weighted",
]
