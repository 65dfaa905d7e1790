"""From what a user types to a model timm knows: plain names, ``hf-hub:`` repositories, ``local-dir:`` folders."""

import difflib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg, get_pretrained_cfg, load_model_config_from_hf

from hypercompress.errors import ModelError, one_line


def resolve(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The registered name, its ``pretrained_cfg`` and saved arguments behind a plain or prefixed name."""
    prefix, colon, place = name.partition(":")
    if not colon:
        return name, registered_cfg(name), {}
    try:
        if prefix in ("hf-hub", "hf_hub"):
            with quiet_hub():
                cfg, known, args = load_model_config_from_hf(place)
        elif prefix == "local-dir":
            content = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
            known, cfg = content["architecture"], dict(content.get("pretrained_cfg", content))
            args = dict(content.get("model_args") or {})
        else:
            raise ModelError(
                f"received model name {name!r}; expected a timm name, hf-hub:REPOSITORY or local-dir:FOLDER; "
                f"replace the prefix {prefix!r}"
            )
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"received {name!r}, whose config.json cannot be read ({one_line(error)}); expected a timm model folder "
            "or repository within reach; check it, or pass a timm name with --checkpoint FILE"
        ) from error
    registered_cfg(known)
    return known, {**asdict(PretrainedCfg()), **cfg}, args


def registered_cfg(name: str) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` of a plain name; `ModelError` with the nearest names if there is none."""
    if not timm.is_model(name):
        raise ModelError(f"received unknown model name {name!r}; expected a timm name; {near_names(name)}")
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:
        arch = name.partition(".")[0]
        tags = timm.list_models(f"{arch}.*", pretrained=True)
        near = difflib.get_close_matches(name, tags, n=3, cutoff=0.0)
        raise ModelError(
            f"received {name!r}, a tag timm does not know; expected {arch} or one of its {len(tags)} tagged names; "
            f"did you mean {', '.join([*near, arch])}?"
        ) from error
    return asdict(cfg or PretrainedCfg())


def near_names(name: str, folders: Sequence[str] = ()) -> str:
    """What may have been meant by a name that timm does not know: one of ``folders``, a name like it, or else what."""
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    if folders:
        return f"did you mean the student folder {' or '.join(folders)}{', or '.join(['', *near])}?"
    if "/" in name:
        return f"for a repository pass hf-hub:{name}, for a folder local-dir:{name}"
    if near:
        return f"did you mean {', '.join(near)}?"
    own = name.isidentifier() and not name.islower()  # as classes are written
    python = "; a module of your own class is passed to hypercompress.compress(model, ...) in Python" if own else ""
    return f"timm.list_models() lists them{python}"


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub client's retry messages off the terminal; what fails in the end is raised in one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
