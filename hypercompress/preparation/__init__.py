"""All that is known of a teacher before there is a budget, and how it is found out."""

from hypercompress.preparation.prepared import Plan
from hypercompress.preparation.preparing import prepare
from hypercompress.preparation.wanted import Wanted

__all__ = ["Plan", "Wanted", "prepare"]
