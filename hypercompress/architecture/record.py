"""What a student folder keeps of its teacher's code: a name, arguments and input description, as plain JSON values.

`build` makes a module of an `Architecture`: offline, and without unpickling anything.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import nn

from hypercompress.architecture.levels import Levels, read_levels
from hypercompress.architecture.names import quiet_hub, registered_cfg
from hypercompress.data import Preprocess
from hypercompress.errors import ModelError, one_line
from hypercompress.noted import RESERVED_ARGS, STATED, cfg_of, is_json, state
from hypercompress.running.calling import out_of_memory

# Entries that say where weights lie or which code runs: they are the registry's business, never an overlay's.
PRIVATE_CFG = {
    *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"),
    *("architecture", "tag", "custom_load", "fixed_input_size"),
}
PUBLIC_CFG = {item.name for item in fields(PretrainedCfg)} - PRIVATE_CFG


@dataclass(frozen=True)
class Architecture:
    """How to build a model without its weights; equal to itself after a trip through JSON.

    Args:
        name: timm name, with or without a tag, without ``hf-hub:`` or ``local-dir:``.
        args: arguments of ``timm.create_model``, such as ``{"in_chans": 1, "num_classes": 10}``; JSON values.
        pretrained_cfg: what the model's ``pretrained_cfg`` says about its input (``input_size`` in pixels as
            [c, h, w], ``mean``, ``std``, ``interpolation``, ``crop_pct`` ...); laid over timm's own entries.
        levels: what the classifier reads beside the last features; ``None``: nothing.

    Raises:
        ModelError: values that JSON cannot hold, or entries that name files, code or a network address.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)
    levels: Levels | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", _checked("model arguments", self.args, RESERVED_ARGS))
        private = PRIVATE_CFG | (set(self.pretrained_cfg) - PUBLIC_CFG)
        object.__setattr__(self, "pretrained_cfg", _checked("pretrained_cfg entries", self.pretrained_cfg, private))


def build(architecture: Architecture) -> nn.Module:
    """The model with random weights, in eval mode. Touches no network.

    Raises:
        ModelError: a name that timm does not know, or arguments the model does not take.
    """
    registered_cfg(architecture.name)
    model = create(architecture.name, architecture.args, overlay=tuples(architecture.pretrained_cfg)).eval()
    if "input_size" in architecture.pretrained_cfg:
        vars(model)[STATED] = True
    return model if architecture.levels is None else read_levels(model, architecture.levels)


def with_preparation(
    model: nn.Module, architecture: Architecture | None, preprocess: Preprocess
) -> tuple[nn.Module, Architecture | None]:
    """Write down in the model and its architecture how its images are prepared, so that a student needs no options."""
    before, stated = cfg_of(model), asdict(preprocess)
    state(model, {**before, **stated})
    if architecture is None:
        return model, None
    args, sides = dict(architecture.args), list(before.get("input_size", preprocess.input_size)[1:])
    if before.get("fixed_input_size") and sides != list(preprocess.input_size[1:]):
        args.setdefault("img_size", sides)  # as it was built, where it takes other sizes, too
    return model, replace(architecture, args=args, pretrained_cfg={**architecture.pretrained_cfg, **stated})


def create(
    name: str, args: Mapping[str, Any], *, overlay: Mapping[str, Any] | None = None, pretrained: bool = False
) -> nn.Module:
    """``timm.create_model``; its failures are told apart: arguments at fault, or weights out of reach.

    Raises:
        ModelError: one of these. Lack of memory stays as it is.
    """
    try:
        with quiet_hub():
            return timm.create_model(
                name, pretrained=pretrained, pretrained_cfg_overlay=dict(overlay) if overlay else None, **args
            )
    except Exception as error:
        if out_of_memory(error):
            raise
        if pretrained:
            create(name, args, overlay=overlay)  # raises if the arguments are the fault
            raise ModelError(
                f"received {name!r}, whose pretrained weights cannot be loaded ({one_line(error)}); expected weights "
                "that timm can download and that fit; pass --checkpoint FILE or --no-pretrained"
            ) from error
        raise ModelError(_refused_args(name, args, error)) from error


def _refused_args(name: str, args: Mapping[str, Any], error: Exception) -> str:
    """Every argument the model's constructor does not know: it names one at a time, so drop and ask again."""
    kept, refused = dict(args), list[str]()
    while (match := re.search(r"unexpected keyword argument '(\w+)'", str(error))) and match[1] in kept:
        refused.append(match[1])
        del kept[match[1]]
        try:
            timm.create_model(name, pretrained=False, **kept)
        except Exception as following:  # noqa: BLE001 - judged by the loop's condition
            error = following
        else:
            break
    given = ", ".join(refused) if refused else f"{json.dumps(dict(args))} ({one_line(error)})"
    return (
        f"received model arguments that {name!r} does not take: {given}; expected arguments of timm.create_model for "
        "this model; change --model-args"
    )


def public_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that an `Architecture` keeps."""
    return {key: value for key, value in cfg.items() if key in PUBLIC_CFG and value is not None and is_json(value)}


def _checked(what: str, given: Mapping[str, Any], forbidden: Iterable[str]) -> dict[str, Any]:
    """A JSON copy of ``given``, or one error with every entry at fault."""
    bad = [key for key, value in given.items() if key in forbidden or not is_json(value)]
    if bad:
        raise ModelError(
            f"received {what} {', '.join(map(str, bad))}; expected plain JSON values that name no file, code or "
            "address; leave these out"
        )
    plain: dict[str, Any] = json.loads(json.dumps(dict(given)))
    return plain


def tuples(value: Any) -> Any:
    """JSON lists as the tuples timm works with, at every depth."""
    if isinstance(value, Mapping):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value
