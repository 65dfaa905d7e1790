"""Generators: analytic and learned, behind one interface."""

from hypercompress.generator.analytic import ANALYTIC, AnalyticGenerator
from hypercompress.generator.protocol import Generator

__all__ = ["ANALYTIC", "AnalyticGenerator", "Generator"]
