"""What timm notes in a model: its ``pretrained_cfg`` and arguments, and from both the size of the images it takes."""

import json
from collections.abc import Mapping
from typing import Any

from timm.models import get_pretrained_cfg
from torch import Tensor, nn

# Arguments of `create_model` that load files or reach the network.
RESERVED_ARGS = {
    *("model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"),
    *("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit"),
}

STATED = "_size_is_stated"  # on modules whose noted size was written here, not by timm, which notes one for all


def cfg_of(module: nn.Module) -> dict[str, Any]:
    """A copy of the module's ``pretrained_cfg``; empty if it has none."""
    cfg = getattr(module, "pretrained_cfg", None)
    return dict(cfg) if isinstance(cfg, Mapping) else {}


def state(module: nn.Module, cfg: Mapping[str, Any]) -> None:
    """Note in the module what is known of its images; its size is no longer that which timm notes in every model."""
    noted = dict(cfg)
    vars(module).update({"pretrained_cfg": noted, "default_cfg": noted, STATED: True})


def own_input_size(module: nn.Module) -> tuple[int, int, int] | None:
    """The size [c, h, w] of one image that a timm model or a student of one takes; ``None`` if it does not say.

    timm notes the size of the pretrained weights, also where ``in_chans`` or ``img_size`` were others.
    """
    cfg = cfg_of(module)
    return input_size(cfg, args_of(module, cfg)) if "input_size" in cfg else None


def own_channels(module: nn.Module) -> int | None:
    """Channels of its images; ``None`` where neither what timm notes nor the first layer says so."""
    cfg = cfg_of(module)
    found = args_of(module, cfg).get("in_chans") if "input_size" in cfg else None
    return found if isinstance(found, int) else None


def prepared_size(module: nn.Module) -> tuple[int, int, int] | None:
    """The size [c, h, w] that its images are prepared in: its own, or, of a model that takes others too, the height and
    width noted where these are not timm's (see `architecture.record.with_preparation` and `architecture.build`);
    ``None`` if it does not say.
    """
    own, cfg = own_input_size(module), cfg_of(module)
    strict = getattr(getattr(module, "patch_embed", None), "strict_img_size", True)
    if own is None or strict:
        return own
    if not getattr(module, STATED, False) and tuple(cfg["input_size"]) == _registered_size(cfg):
        return own
    _, height, width = cfg["input_size"]
    return own[0], int(height), int(width)


def _registered_size(cfg: Mapping[str, Any]) -> tuple[int, ...] | None:
    """What timm notes in every such model, however it was built."""
    name, tag = str(cfg.get("architecture")), cfg.get("tag")
    known = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    return None if known is None else tuple(known.input_size)


def input_size(cfg: Mapping[str, Any], args: Mapping[str, Any]) -> tuple[int, int, int]:
    """The size of one input [c, h, w] of the model that these arguments make."""
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    fixed = args.get("img_size") if cfg.get("fixed_input_size") else None
    if fixed is not None:
        height, width = (fixed, fixed) if isinstance(fixed, int) else fixed
    return int(args.get("in_chans", channels)), int(height), int(width)


def args_of(module: nn.Module, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The ``create_model`` arguments of a module: what timm noted down, then what the module shows."""
    noted = getattr(module, "_model_args", {})
    args = {key: value for key, value in noted.items() if key not in RESERVED_ARGS and is_json(value)}
    if isinstance(classes := getattr(module, "num_classes", None), int):
        args["num_classes"] = classes
    stem = cfg.get("first_conv")
    if isinstance(stem, str) and "in_chans" not in args:
        weight, usual = getattr(_part(module, stem), "weight", None), cfg["input_size"][0]
        if isinstance(weight, Tensor):
            seen = weight.shape[1]  # some stems fold pixels into channels
            args["in_chans"] = usual if seen > usual and seen % usual == 0 else seen
    if cfg.get("fixed_input_size") and "img_size" not in args:
        size = getattr(getattr(module, "patch_embed", None), "img_size", None)
        if isinstance(size, tuple) and size != tuple(cfg["input_size"])[1:]:
            args["img_size"] = list(size)
    return args


def _part(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def is_json(value: object) -> bool:
    """Whether JSON can hold the value (NaN and infinity it cannot)."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
