"""hypercompress: compact students of trained vision models, generated in one pass."""

from hypercompress.compress import compress
from hypercompress.specs import Budget
from hypercompress.student import Student, from_pretrained

__all__ = ["Budget", "Student", "compress", "from_pretrained"]
__version__ = "0.1.0"
