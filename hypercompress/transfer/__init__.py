"""Fast transfer: a trained model adapted to a new task from a few labelled images."""

from hypercompress.transfer.ridge import Ridge, fit_ridge

__all__ = ["Ridge", "fit_ridge"]
