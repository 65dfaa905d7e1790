"""Recognising a timm model that the caller made, by rebuilding it and comparing."""

from collections.abc import Iterable, Mapping

import timm
import torch
from torch import Tensor, nn

from hypercompress.alone import drawing
from hypercompress.architecture.levels import ReadsLevels
from hypercompress.architecture.names import registered_cfg
from hypercompress.architecture.record import Architecture, build, public_cfg
from hypercompress.errors import ModelError
from hypercompress.noted import args_of, cfg_of, input_size
from hypercompress.running.calling import evaluating, out_of_memory
from hypercompress.running.copying import copy_of, weights_of


def architecture_of(module: nn.Module) -> Architecture | None:
    """Recognise a timm model that the caller made, or return ``None``.

    The candidate is rebuilt and must have the same layers (compared by printed form), the same weights by name and
    shape, and the same outputs on one random input. The module and the random state stay as they were. Lack of memory
    is raised as it is.
    """
    cfg = cfg_of(module)
    name = str(cfg.get("architecture"))
    if not timm.is_model(name):
        return None
    try:
        tagged = f"{name}.{cfg['tag']}" if cfg.get("tag") else name
        registered_cfg(tagged)
    except ModelError:
        tagged = name
    try:
        args = args_of(module, cfg)
        known = public_cfg({**cfg, "input_size": input_size(cfg, args)})
        candidate = Architecture(tagged, args, known, module.levels if isinstance(module, ReadsLevels) else None)
        with drawing():
            same = _same_function(module, build(candidate), candidate.pretrained_cfg["input_size"])
    except Exception as error:  # whatever else a modified module raises, it is not the model timm builds
        if out_of_memory(error):
            raise
        return None
    return candidate if same else None


def _same_function(module: nn.Module, rebuilt: nn.Module, size: Iterable[int]) -> bool:
    """Whether two modules print alike, hold the same names and shapes, and agree on one random input."""
    state = module.state_dict()
    if repr(module) != repr(rebuilt) or _shapes(state) != _shapes(rebuilt.state_dict()):
        return False
    rebuilt.load_state_dict(state)
    some = next(module.parameters())
    example = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(some)
    # What was made in inference mode counts no writes, by which a buffer would be put back.
    copied = copy_of(module, shared=[tensor for tensor in weights_of(module) if not tensor.is_inference()])
    with evaluating(copied), torch.no_grad():  # inference mode does not count what is written into shared buffers
        ours, theirs = copied(example), rebuilt.to(some)(example)
    return bool(torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6))


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}
