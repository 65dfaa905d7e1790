"""A teacher made ready for any budget: what is wanted is checked, what is known is measured."""

from hypercompress.preparation.plan import Plan
from hypercompress.preparation.preparing import prepare
from hypercompress.preparation.wanted import Wanted

__all__ = ["Plan", "Wanted", "prepare"]
