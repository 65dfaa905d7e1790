"""hypercompress: compact low-rank students of trained vision models."""

from hypercompress.compress import compress
from hypercompress.export import export
from hypercompress.kinds import LayerKind, LinearKind, register_kind
from hypercompress.specs import Budget
from hypercompress.student import Student, from_pretrained
from hypercompress.transfer import adapt

__all__ = [
    "Budget",
    "LayerKind",
    "LinearKind",
    "Student",
    "adapt",
    "compress",
    "export",
    "from_pretrained",
    "register_kind",
]
__version__ = "0.1.0"
