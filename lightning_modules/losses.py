"""What a distilled student follows: the weights of the terms of its loss."""

from dataclasses import dataclass

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
