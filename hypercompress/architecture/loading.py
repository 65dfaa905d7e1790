"""A timm model with its weights, from the command line's words to a module in eval mode."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hypercompress.architecture.names import resolve
from hypercompress.architecture.record import Architecture, create, public_cfg, tuples
from hypercompress.architecture.weights import check_finite, load_checkpoint
from hypercompress.errors import ModelError, warn
from hypercompress.noted import cfg_of, input_size, state


def load_timm(
    name: str,
    *,
    checkpoint: Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = True,
    pretrained_cfg: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Architecture]:
    """A timm model with its weights, in eval mode, and the data that builds it again.

    Args:
        name: timm name, ``hf-hub:REPOSITORY`` or ``local-dir:FOLDER``.
        checkpoint: weights to load instead of pretrained ones; see `read_weights`.
        model_args: arguments of ``timm.create_model``.
        pretrained: load timm's pretrained weights; without effect when a checkpoint is given.
        pretrained_cfg: replaces entries of the model's ``pretrained_cfg``. ``input_size`` also sets ``in_chans``,
            and ``img_size`` where timm fixes it; a new height or width sets ``crop_pct`` to 1 unless given.

    Raises:
        ModelError: unknown name, arguments or entries the model does not take, weights that cannot be had, read or
            fitted (with every key at fault).
        NonFiniteError: NaN or infinity in the weights.

    Warns:
        of pretrained weights for another number of classes, because timm then draws the classifier at random.
    """
    known, cfg, saved_args = resolve(name)
    wanted = Architecture(known, {**saved_args, **(model_args or {})}, pretrained_cfg or {})
    overlay = tuples(wanted.pretrained_cfg)
    args = {**_requested(cfg, overlay, wanted.args), **wanted.args}
    overlay = {**_crop(cfg, overlay), **overlay}
    model = create(name, args, pretrained=pretrained and checkpoint is None)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, name, args)
    elif pretrained:
        _warn_of_drawn_head(name, cfg, model)
    check_finite(model, str(checkpoint or name))
    final = {**cfg_of(model), **overlay}
    final["input_size"] = input_size(final, args)
    state(model, final)
    return model.eval(), Architecture(known, args, public_cfg(final))


def _warn_of_drawn_head(name: str, cfg: Mapping[str, Any], model: nn.Module) -> None:
    there, wanted = cfg.get("num_classes"), getattr(model, "num_classes", None)
    if there and wanted and wanted != there:
        warn(
            f"{name}: the pretrained weights are of {there} classes, the model has {wanted}; its classifier is drawn "
            "at random and what is compared with it means nothing; pass a checkpoint with a trained one",
        )


def _requested(cfg: Mapping[str, Any], overlay: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that an overlay implies, so that the module agrees with its own ``pretrained_cfg``."""
    implied: dict[str, Any] = {}
    if "num_classes" in overlay:
        implied["num_classes"] = overlay["num_classes"]
    size = overlay.get("input_size")
    if size is None:
        return implied
    if not (isinstance(size, tuple) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ModelError(
            f"received input_size {size}; expected channels, height and width, such as 3 224 224; pass three numbers"
        )
    if args.get("in_chans", size[0]) != size[0]:
        raise ModelError(
            f"received input_size {list(size)} and in_chans {args['in_chans']}; expected equal channels; "
            "change one of them"
        )
    before = tuple(cfg["input_size"])
    if size[0] != before[0]:
        implied["in_chans"] = size[0]
    if size[1:] != before[1:] and cfg.get("fixed_input_size"):
        implied["img_size"] = list(size[1:])
    return implied


def _crop(cfg: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The crop that goes with the pretrained size means nothing at another size: keep the whole image there."""
    size = overlay.get("input_size")
    return {"crop_pct": 1.0} if size is not None and tuple(size[1:]) != tuple(cfg["input_size"])[1:] else {}
