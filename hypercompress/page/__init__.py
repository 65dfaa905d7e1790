"""A student's report as one HTML file."""

from hypercompress.page.render import report_page

__all__ = ["report_page"]
