"""Images for calibration, evaluation and training: folders, registered data sets, and one that is packaged."""

from hypercompress.data.folder import open_folder
from hypercompress.data.images import ImageData, loader
from hypercompress.data.preprocess import Preprocess
from hypercompress.data.registry import open_data, registered_names

__all__ = ["ImageData", "Preprocess", "loader", "open_data", "open_folder", "registered_names"]
