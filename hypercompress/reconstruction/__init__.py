"""Each layer refitted to the inputs that it really gets."""

from hypercompress.reconstruction.sequential import reconstruct, refit_batch

__all__ = ["reconstruct", "refit_batch"]
