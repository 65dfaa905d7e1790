"""What a distilled student follows: the weights of the terms of its loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypercompress.errors import ModelError
from hypercompress.running.outputs import NUMBERS
from lightning_modules.optimization import SettingError


@dataclass(frozen=True)
class Losses:
    """Weights of the terms; a term of weight 0 is not computed.

    Args:
        logits: of the KL to the teacher's softened predictions.
        temperature: of both predictions in it.
        features: of the un-pooled feature error, on the maps that timm names in ``feature_info`` and that are single
            tensors of one shape in student and teacher.
        labels: of the cross-entropy with the labels.
    """

    logits: float = 1.0
    temperature: float = 1.0
    features: float = 0.1
    labels: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.logits, self.features, self.labels)
        if min(weights) < 0 or max(weights) == 0 or self.temperature <= 0:
            raise SettingError(
                f"received logits {self.logits:g}, features {self.features:g}, labels {self.labels:g}, temperature "
                f"{self.temperature:g}; expected weights of 0 or more, one above 0, and a temperature above 0; change "
                "them"
            )

    def require_classes(self, report: Mapping[str, Any]) -> None:
        """Raises ModelError if a student says in its report that its outputs are numbers, or have their classes where
        these losses do not look.
        """
        if max(self.logits, self.labels) == 0:
            return
        if report.get("outputs") == NUMBERS:
            raise ModelError(
                "received a student whose outputs are numbers (outputs in its report.json); expected logits, which is "
                "what these losses compare; train it in a loop of your own"
            )
        if (axis := report.get("class_axis")) is not None:
            raise ModelError(
                f"received a student whose outputs have their classes along axis {axis} (class_axis in its "
                "report.json); expected [b, classes]; train it in a loop of your own"
            )

    def require_maps(self, maps: Sequence[str], why: str) -> None:
        """Raises ModelError if maps alone are followed, and there are none: ``why`` says of what model."""
        if not maps and self._maps_alone:
            raise ModelError(
                f"received a weight on features alone for a model {why}; expected something to learn from; set the "
                "weight of the logits above 0"
            )

    def require_all_weights(self, processes: int) -> None:
        """Raises SettingError if several processes would wait for gradients that no term gives the classifier."""
        if processes > 1 and self._maps_alone:
            raise SettingError(
                f"received a weight on features alone for {processes} processes; expected a term that reaches every "
                "weight, the classifier's too; set the weight of the logits above 0, or train in one process"
            )

    @property
    def _maps_alone(self) -> bool:
        return self.features > 0 and self.logits == self.labels == 0
