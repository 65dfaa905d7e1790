"""How a model's images are prepared, written down in the model and in what builds it again."""

from dataclasses import asdict, replace

from torch import nn

from hypercompress.architecture.record import Architecture
from hypercompress.data import Preprocess
from hypercompress.noted import cfg_of, state


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
