"""A student as one file that runs without this package."""

from hypercompress.export.checked import FORMATS, Exported, check_request, export, refuse_existing_file

__all__ = ["FORMATS", "Exported", "check_request", "export", "refuse_existing_file"]
