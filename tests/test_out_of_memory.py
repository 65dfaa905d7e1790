"""Lack of memory is no fault of a batch, of a model or of its arguments, wherever these are tried."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress.architecture import architecture_of, load_timm
from hypercompress.cli import inputs
from hypercompress.errors import DataError, ModelError
from hypercompress.export import export
from hypercompress.export.program import understood
from hypercompress.running.calling import refused, taking
from hypercompress.running.copying import copy_of, weights_of
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.levels import find_levels
from hypercompress.transfer.reading import features_of
from lightning_modules.matching import probed
from tests.small_models import SMALL

LARGE = 2**50  # more numbers than an address reaches
X = torch.zeros(2, 1, 32, 32)
LACKS = ["on the CPU", "on a GPU"]  # torch has a type of error for the second alone


def raises(lack: str) -> None:
    if lack == "on a GPU":
        raise torch.OutOfMemoryError("CUDA out of memory: can't allocate memory")
    torch.empty(LARGE)


def exhausted(lack: str, names: tuple[str, ...] = ("forward", "forward_features", "forward_intermediates")) -> Any:
    """A small timm model that asks for too much memory."""
    model: Any = timm.create_model("test_resnet", pretrained=False, **SMALL).eval()
    for name in names:
        setattr(model, name, lambda *_, **__: raises(lack))
    return model


PLACES: dict[str, Callable[[Any, Path], Any]] = {
    "compress": lambda model, _: taking(None)(model, X),
    "export": lambda model, folder: export(model, folder / "file", "torch-export", input_size=(1, 32, 32)),
    "support": lambda model, _: features_of(Backbone(model), X),
    "levels": lambda model, _: find_levels(Backbone(model), X[:1], torch.zeros(1, 8), 2, 2),
    "distillation": lambda model, _: probed(model, (), (1, 32, 32), "teacher"),
    "command": lambda model, _: inputs.output_shape(model, (1, 32, 32)),
    "inspection": lambda model, _: inputs.inspected(model, (1, 32, 32)),
}


@pytest.mark.parametrize("lack", LACKS)
def test_nor_is_an_exporter(lack: str) -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"), understood("a model", "one that is exported"):
        raises(lack)


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("place", PLACES)
def test_a_model_that_lacks_memory_is_not_told_as_another_fault(place: str, lack: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        PLACES[place](exhausted(lack), tmp_path)
    assert not isinstance(raised.value, ModelError | DataError)


@pytest.mark.parametrize("lack", LACKS)
def test_a_model_is_recognised_or_memory_lacks(lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = exhausted(lack, ())
    monkeypatch.setattr(type(model), "forward", lambda *_: raises(lack))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        architecture_of(model)


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("pretrained", [True, False])
def test_arguments_are_not_at_fault_for_lack_of_memory(
    lack: str, pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exhausted(lack, ())
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: raises(lack))
    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        load_timm("test_resnet.r160_in1k", pretrained=pretrained)
    assert not isinstance(raised.value, ModelError)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        architecture_of(model)


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, ValueError, IndexError, TypeError])
def test_what_a_model_raises_becomes_the_error_that_is_told(kind: type[Exception]) -> None:
    own, told = kind("shapes"), ModelError("told")
    with pytest.raises(ModelError, match="told") as raised, refused(lambda error: told if error is own else None):
        raise own
    assert raised.value is told
    assert raised.value.__cause__ is own


@pytest.mark.parametrize("own", [ModelError("as it is"), DataError("as it is"), KeyError("another"), MemoryError()])
def test_other_errors_stay_as_they_are(own: Exception) -> None:
    with pytest.raises(type(own)) as raised, refused(lambda _: ModelError("told")):
        raise own
    assert raised.value is own


def test_a_model_is_recognised_without_a_copy_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left as it was, although what its passes count is written into its own buffers."""
    model: Any = timm.create_model("test_resnet", pretrained=False, **SMALL).train()

    def counting(module: nn.Module, args: Any, output: Tensor) -> None:
        for buffer in module.buffers():
            buffer.add_(1)

    model.bn1.register_forward_hook(counting)
    made = []

    def kept(*args: Any, **options: Any) -> nn.Module:
        made.append(copy_of(*args, **options))
        return made[-1]

    monkeypatch.setattr("hypercompress.architecture.recognition.copy_of", kept)
    before, ours = [tensor.clone() for tensor in weights_of(model)], list(map(id, weights_of(model)))
    architecture = architecture_of(model)
    assert architecture is not None
    assert list(map(id, weights_of(made[0]))) == ours == list(map(id, weights_of(model)))
    assert all(map(torch.equal, weights_of(model), before))
    assert all(module.training for module in model.modules())
