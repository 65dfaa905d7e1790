"""Kronecker-factored Fisher: measured, and mended where too few images say it."""

from hypercompress.curvature.kronecker import UNREACHED, measure, reached

__all__ = ["UNREACHED", "measure", "reached"]
