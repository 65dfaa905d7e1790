"""Parts of reports that several tests read."""

from typing import Any

# What a report says of a move to a task.
MOVED: dict[str, Any] = {
    "ways": 3,
    "images": 9,
    "kept": "plain",
    "why": "leave-one-out loss",
    "penalty": 0.1,
    "steps": 0,
    "loo": {"plain": {"accuracy": 0.5, "loss": 1.0}, "adapted": {"accuracy": None, "loss": None}},
}
