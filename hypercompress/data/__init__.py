"""Images for calibration, evaluation and training: folders, registered data sets, and one that is packaged."""

from hypercompress.data.episodes import Episode, Pool, read_pool, sample_episode, split_classes
from hypercompress.data.folder import check_splits, folder_read, open_folder
from hypercompress.data.images import ImageData, loader
from hypercompress.data.numbering import mismatch, unlike_timm
from hypercompress.data.places import expanded
from hypercompress.data.preprocess import Preprocess
from hypercompress.data.registry import open_data, registered_names
from hypercompress.data.renormalized import other_normalization, renormalize_

__all__ = [
    "Episode",
    "ImageData",
    "Pool",
    "Preprocess",
    "check_splits",
    "expanded",
    "folder_read",
    "loader",
    "mismatch",
    "open_data",
    "open_folder",
    "other_normalization",
    "read_pool",
    "registered_names",
    "renormalize_",
    "sample_episode",
    "split_classes",
    "unlike_timm",
]
