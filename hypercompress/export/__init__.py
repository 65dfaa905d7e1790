"""A student as one file that runs without this package."""

from hypercompress.export.checked import FORMATS, Exported, check_request, export, format_of

__all__ = ["FORMATS", "Exported", "check_request", "export", "format_of"]
