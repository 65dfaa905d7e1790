"""A classifier seen as a backbone: images in, the features that its last linear layer reads out."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from hypercompress.architecture import Levels, ReadsLevels
from hypercompress.errors import ModelError
from hypercompress.running.hooks import hooked

METHODS = ("forward_features", "forward_head", "get_classifier", "reset_classifier")  # of timm's classifiers


class Backbone(nn.Module):
    """A timm model up to its classifier: the features are what its last linear layer is given.

    Args:
        model: has `METHODS`, as timm's.

    Shape: images [n, c, h, w] to features [n, d].

    Raises:
        ModelError: not such a model; while it runs, a model that does something behind its last layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        missing = [name for name in METHODS if not hasattr(model, name)]
        if missing:
            raise ModelError(
                f"received {type(model).__name__} without {', '.join(missing)}; expected a timm classifier or a "
                "student of one, whose features can be told from its head; wrap your model so that it has them"
            )
        self.model = model

    def forward(self, x: Tensor) -> Float[Tensor, "n d"]:
        """One pass of the whole model, so that it tells too whether the last layer is the end of it."""
        seen = list[tuple[Any, Any]]()
        last = self.model.get_submodule(self.classifier)
        with hooked([last.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))]):
            logits = self.model(x)
        if len(seen) != 1 or seen[0][1] is not logits:
            raise ModelError(
                f"received {type(self.model).__name__}, whose output is not that of its last layer; expected a linear "
                "classifier at the very end; choose another model"
            )
        features: Tensor = seen[0][0]
        if features.ndim != 2:
            raise ModelError(
                f"received a model whose features before the classifier are {list(features.shape)}; expected one "
                "vector for each image; choose a model that pools them (global_pool)"
            )
        return features

    def adapted(self, parameters: Mapping[str, Tensor], x: Tensor) -> Float[Tensor, "n d"]:
        """Features with other values for some of the model's parameters; differentiable in these."""
        features: Tensor = functional_call(self, {f"model.{name}": p for name, p in parameters.items()}, (x,))
        return features

    @property
    def levels(self) -> Levels | None:
        """What the features are beside the last ones."""
        return self.model.levels if isinstance(self.model, ReadsLevels) else None

    def last(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d2"]:
        """The last features among all."""
        return features if self.levels is None else features[:, : self.levels.last]

    @property
    def classifier(self) -> str:
        """Dotted path of the last layer.

        Raises:
            ModelError: it is not one linear layer.
        """
        model: Any = self.model
        last = model.get_classifier()
        found: list[str] = [name for name, module in self.model.named_modules() if module is last]
        if not isinstance(last, nn.Linear) or not found:
            raise ModelError(
                f"received {type(self.model).__name__}, whose classifier is {type(last).__name__}; expected one linear "
                "layer, which a closed-form head can take the place of; choose another model"
            )
        return found[0]

    def set_classifier(self, weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"]) -> None:
        """Put a head into the model, in place of a classifier of as many classes, with a bias."""
        last = self.model.get_submodule(self.classifier)
        assert isinstance(last, nn.Linear)  # by classifier
        with torch.no_grad():
            last.weight.copy_(weight)
            last.bias.copy_(bias)
