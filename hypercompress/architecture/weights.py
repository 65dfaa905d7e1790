"""Checkpoints: read without running code, fitted, or refused with what is at fault."""

import json
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hypercompress.alone import ALONE
from hypercompress.errors import ModelError, NonFiniteError, listed, one_line

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
AVERAGES, OTHERS = ("state_dict_ema", "model_ema"), ("state_dict", "model")
WRAPPERS = (*AVERAGES, *OTHERS)
TABLES = re.compile(r"pos_embed|position|rel_pos")  # in names of what a model has of the size of its images


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, on the CPU. No code in the file is ever run.

    Args:
        path: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.tar`` read with ``weights_only=True``.
            ``{"state_dict": ...}`` and its kin are unwrapped (an average of the weights first, as timm does), and the
            prefixes ``module.`` and ``_orig_mod.`` that wrappers leave are dropped.

    Raises:
        ModelError: no such file, unknown suffix, corrupt, objects other than tensors, or no tensors at all.
    """
    if not path.is_file():
        raise ModelError(f"received checkpoint {path}, which is no file; expected weights; check the path")
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(
            f"received checkpoint {path}; expected a name that ends in {', '.join(SUFFIXES)}; save the weights as one"
        )
    content = _read(path)
    content = next((content[wrapper] for wrapper in _wrappers(content)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(
            f"received checkpoint {path}, which holds no mapping of names to tensors; expected a state dict, or one "
            'under "state_dict" or "model"; save model.state_dict()'
        )
    return {re.sub(r"^((module|_orig_mod)\.)+", "", str(key)): value for key, value in content.items()}


def _wrappers(content: Any) -> list[str]:
    """Under which names the content of a checkpoint has weights; the first are read."""
    named = content if isinstance(content, Mapping) else {}
    return [wrapper for wrapper in WRAPPERS if isinstance(named.get(wrapper), Mapping)]


def average_in(path: Path) -> str | None:
    """Under which name `read_weights` finds an average of the weights where the file has these as well."""
    try:
        found = _wrappers(_read(path, mapped=zipfile.is_zipfile(path)))
    except (ModelError, OSError):  # which who loads it says
        return None
    return found[0] if {*found} & {*AVERAGES} and {*found} & {*OTHERS} else None


def _read(path: Path, *, mapped: bool = False) -> Any:
    """Whatever the file holds, or a `ModelError`; ``mapped``: no tensor is read before it is looked at."""
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with ALONE, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks about old formats; a failure is raised below
            # timm's own training checkpoints carry their command line as a Namespace: attributes, no code.
            with torch.serialization.safe_globals([Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except SafetensorError as error:
        reason = one_line(error)
    except Exception as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if blocked or "weights_only" in str(error):
            what = blocked[1] if blocked else "objects"
            raise ModelError(
                f"received checkpoint {path}, which asks to load {what}; expected tensors only, because such a file "
                "can run code; save model.state_dict() as .safetensors"
            ) from error
        reason = one_line(error)
    raise ModelError(
        f"received checkpoint {path}, which is corrupt or cut short ({reason}); expected readable weights; "
        "copy it again"
    )


def load_checkpoint(model: nn.Module, path: Path, name: str, args: Mapping[str, Any]) -> None:
    """Put the file's weights into the model, or raise one `ModelError` that says how many keys are at fault, and which.

    Raises:
        ModelError: names are missing, unexpected or of another shape; of each sort the first five are named.
    """
    weights, expected = read_weights(path), model.state_dict()
    if not set(weights) & set(expected):  # a LightningModule keeps its network under `model`
        weights = {key.removeprefix("model."): value for key, value in weights.items()}
    # Counters of BatchNorm are younger than many checkpoints; torch fills them in.
    missing = [key for key in expected if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in expected]
    shapes = [
        f"{key} {list(weights[key].shape)} for {list(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(faults.values()):
        sized = any(map(TABLES.search, shapes))
        advice = f"--model-args (num_classes, in_chans{', img_size) or --input-size' if sized else ')'}"
        named = "; ".join(f"{len(keys)} {what}: {listed(keys)}" for what, keys in faults.items() if keys)
        raise ModelError(
            f"received checkpoint {path} that does not fit {name!r} with arguments {json.dumps(dict(args))}: {named}; "
            f"expected the same names and shapes; check the model name and {advice}"
        )
    model.load_state_dict(weights)


def check_finite(model: nn.Module, source: str) -> None:
    """Raise `NonFiniteError` with the names of weights that hold NaN or infinity."""
    bad = [key for key, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise NonFiniteError(
            f"received weights of {source} with NaN or infinity in {listed(bad)}; expected finite numbers; use "
            "another checkpoint"
        )
