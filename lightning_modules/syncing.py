"""BatchNorms that normalise by the batches of all processes, and are afterwards what they were."""

from lightning.pytorch.plugins import LayerSync
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]  # re-exported without __all__
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedNorms(LayerSync):
    """What ``trainer.sync_batchnorm`` does, for timm's networks too.

    Lightning's own asks torch to convert them, which knows nothing of the activation that timm's ``BatchNormAct2d`` has
    in it, and leaves a norm of no dimension behind.
    """

    def __init__(self) -> None:
        self._own: list[tuple[nn.Module, str, nn.Module]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """The model with its norms converted in place; parameters and buffers are the same tensors."""
        self._own = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, _BatchNorm)
        ]
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """The model with its own norms in their places, of the weights and moments that it has now."""
        for parent, name, own in self._own:
            synced = parent.get_submodule(name)
            own._parameters.update(synced._parameters)
            own._buffers.update(synced._buffers)
            own.train(synced.training)
            parent.add_module(name, own)
        self._own = []
        return model
