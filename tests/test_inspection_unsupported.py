"""Layers that cannot be factored are listed as such, with the reason: others read or change their weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.errors import NonFiniteError
from hypercompress.inspection import inspect
from hypercompress.packed.unpacking import unpack
from hypercompress.specs import Status
from tests.lookup import row


@pytest.mark.parametrize("how", ["weight", "transposed", "forward", "detached", "T", "mT", "H", "mH", "data"])
def test_layer_whose_weight_another_module_uses_is_unsupported(how: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x)
            if how == "weight":
                return F.linear(x, self.head.weight, self.head.bias)
            if how == "forward":
                return self.head.forward(x)
            if how in ("transposed", "detached"):
                return x @ (self.head.weight.t() if how == "transposed" else self.head.weight.detach())
            return x @ getattr(self.head.weight, how)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Reader()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    spec = inspect(Wrapped(), torch.randn(2, 8))
    layer = row(spec, "block.head")
    assert (layer.status, layer.reason) == (Status.UNSUPPORTED, "its weight is read directly by block")
    assert row(spec, "block.fc").status is Status.FACTORED


def test_asking_a_weight_for_its_type_does_no_harm() -> None:
    class Asks(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as torch calls it)
            return super().forward(input)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.to(self.fc.weight.dtype).to(self.fc.weight.device)) / self.fc.weight.shape[0]

    assert row(inspect(Model(), torch.randn(2, 8)), "fc").status is Status.FACTORED
    subclass = inspect(nn.Sequential(Asks(8, 8)), torch.randn(2, 8)).layers[0]
    assert (subclass.status, subclass.reason) == (Status.UNSUPPORTED, "no kind of layer is registered for Asks")


def test_multihead_attention_is_unsupported_and_its_neighbours_are_not() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    spec = inspect(model, torch.randn(2, 5, 16))
    attention = row(spec, "self_attn")
    assert attention.status is Status.UNSUPPORTED
    assert attention.reason == "nn.MultiheadAttention packs its projections into one parameter; compress() unpacks it"
    assert row(spec, "self_attn.out_proj").status is Status.UNSUPPORTED
    assert [layer.name for layer in spec.candidates] in ([], ["linear1", "linear2"])


@pytest.mark.parametrize(
    ("name", "arguments", "readers"),
    [
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32}, ["blocks.0.attn.qkv"]),
        (
            "eva02_tiny_patch14_224",
            {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 28},
            ["blocks.0.attn.q_proj", "blocks.0.attn.qkv"],
        ),
        (
            "swinv2_tiny_window8_256",
            {"depths": (1,), "num_heads": (2,), "embed_dim": 32, "img_size": 64, "window_size": 8},
            ["layers.0.blocks.0.attn.qkv"],
        ),
        ("mobilevitv2_050", {}, []),
    ],
)
def test_timm_models_that_read_weights_directly(name: str, arguments: dict[str, Any], readers: list[str]) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=5, **arguments).eval()
    size = 64 if not arguments else arguments["img_size"]
    x = torch.randn(1, 3, size, size)
    spec = inspect(model, x)
    by_name = {layer.name: layer for layer in spec.layers}
    for reader in readers:
        if reader in by_name:
            assert by_name[reader].status is Status.UNSUPPORTED, by_name[reader]
            assert "read directly by" in by_name[reader].reason
    assert all(layer.positions > 0 for layer in spec.candidates)
    # What inspection accepts can be replaced: a substitute at each candidate is reached by the forward pass.
    reached = set()
    for layer in spec.candidates:
        module = model.get_submodule(layer.name)
        module.register_forward_hook(lambda _m, _i, _o, name=layer.name: reached.add(name))
        shape = module.weight.shape
        del module._parameters["weight"]
        module.register_buffer("weight", torch.zeros(shape))
    with torch.no_grad():
        model(x)
    assert reached == {layer.name for layer in spec.candidates}


def test_a_convolution_with_another_forward_is_unsupported() -> None:
    class Special(nn.Conv2d):
        """A convolution that nobody has registered."""

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as torch calls it)
            return super().forward(input).relu()

    spec = inspect(nn.Sequential(Special(3, 16, 3), nn.Conv2d(16, 16, 1)), torch.randn(1, 3, 8, 8))
    assert row(spec, "0").status is Status.UNSUPPORTED
    assert row(spec, "0").reason == "no kind of layer is registered for Special"
    assert [layer.name for layer in spec.candidates] == ["1"]


def test_a_class_called_as_a_known_one_is_told_by_where_it_is_from() -> None:
    """As the layers that torch.ao.quantization.prepare_qat puts in."""

    class Conv2d(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as torch calls it)
            return super().forward(input).relu()

    spec = inspect(nn.Sequential(Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)), torch.randn(1, 3, 8, 8))
    assert row(spec, "0").reason == f"no kind of layer is registered for {__name__}.{Conv2d.__qualname__}"


@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward"])
def test_layer_that_was_changed_by_hand_is_unsupported(how: str) -> None:
    """What takes its place would have neither the hook nor the forward."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    forward = model[0].forward
    if how == "hook":
        model[0].register_forward_hook(lambda _module, _inputs, output: 3 * output)
    elif how == "pre-hook":
        model[0].register_forward_pre_hook(lambda _module, inputs: inputs[0] + 1)
    else:
        model[0].forward = lambda x: 3 * forward(x)
    spec = inspect(model, torch.randn(2, 8))
    assert (row(spec, "0").status, row(spec, "0").reason) == (
        Status.UNSUPPORTED,
        "it has hooks or a forward of its own",
    )
    assert row(spec, "1").status is Status.FACTORED


@pytest.mark.parametrize("what", ["buffer", "parameter", "module"])
def test_layer_that_holds_more_than_its_class_gives_it_is_unsupported(what: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(6, 12), nn.Linear(12, 6)
            if what == "buffer":
                self.qkv.register_buffer("extra", torch.ones(12))
            else:
                self.qkv.extra = nn.Parameter(torch.ones(12)) if what == "parameter" else nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y, extra = self.qkv(x), self.qkv.extra
            return self.head(extra(y) if what == "module" else y * extra)

    model, x = Reader(), torch.randn(2, 6)
    spec = inspect(unpack(model), x)
    assert (row(spec, "qkv").status, row(spec, "qkv").reason) == (
        Status.UNSUPPORTED,
        "it also holds extra, which its low-rank form would not have",
    )
    assert compress(model, Budget(params=0.9), generator="svd", example=x)(x).isfinite().all()


class Borrowing(nn.Module):
    """Reads the vectors of a layer or of a norm."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.fc, self.norm, self.head = nn.Linear(20, 24, bias=False), nn.BatchNorm1d(24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.fc(x)).tanh()
        if self.how == "bias":
            return self.head(x) + 3 * self.head.bias
        if self.how in ("shift", "scale"):
            return self.head(x + 3 * (self.norm.bias if self.how == "shift" else self.norm.weight.detach()))
        return self.head(x) * self.head.bias.shape[0] + self.norm.bias.numel() + self.norm.weight.dim()


@pytest.mark.parametrize("how", ["bias", "shift", "scale", "look"])
def test_vectors_that_another_module_reads_are_not_rewritten(how: str) -> None:
    torch.manual_seed(0)
    model, x = Borrowing(how).eval(), torch.randn(256, 20)
    for tensor in (*model.norm.parameters(), model.norm.running_mean, model.norm.running_var):
        tensor.data.uniform_(0.5, 2.0)
    spec = inspect(model, x)
    head, fc = row(spec, "head"), row(spec, "fc")
    assert head.reason == ("its bias is read directly by the model itself" if how == "bias" else "")
    assert fc.follower == (None if how in ("shift", "scale") else "norm")
    student = compress(model, Budget(params=0.75), x.split(32), "kfac", norms=False)
    assert student.ranks
    for name in {"bias": ["head.bias"], "shift": ["norm.bias"], "scale": ["norm.weight"]}.get(how, []):
        assert torch.equal(student.model.get_parameter(name), model.get_parameter(name))


def test_complex_weights_are_unsupported() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.wave = nn.Linear(20, 24), nn.Linear(24, 24, dtype=torch.complex64)
            self.last = nn.Linear(24, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.wave(self.first(x).to(torch.complex64)).abs())

    torch.manual_seed(0)
    model, x = Waves().eval(), torch.randn(64, 20)
    wave = row(inspect(model, x), "wave")
    assert (wave.status, wave.reason) == (Status.UNSUPPORTED, "its weight is complex")
    student = compress(model, Budget(params=0.9), x.split(8), "kfac")
    assert student.ranks
    assert student(x).isfinite().all()
    with torch.no_grad():
        model.wave.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"received NaN or infinity in wave\.weight"):
        inspect(model, x)


class Part(nn.Module):
    """With a matrix and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(24, 24), nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.fc(x))
        return y.tanh()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mode", [True, False])
def test_a_scripted_part_stays_as_it_is(tmp_path: Path, mode: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(20, 24, bias=False), nn.BatchNorm1d(24)
            self.part, self.last = torch.jit.script(Part()), nn.Linear(24, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(self.part(x) + self.norm(x))

    torch.manual_seed(0)
    model, x = Model().train(mode), torch.randn(64, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = inspect(model, x)
    reason = "it is part of a scripted module (torch.jit), whose layers are no Python modules"
    assert (row(spec, "part.fc").status, row(spec, "part.fc").reason) == (Status.UNSUPPORTED, reason)
    assert row(spec, "part.norm").status is Status.KEPT
    assert {layer.name for layer in spec.candidates} == {"first", "last"}
    assert row(spec, "first").follower is None  # the part reads its output, too
    assert spec.macs == 20 * 24 + 24 * 24 + 24 * 6
    student = compress(model, Budget(params=0.9), x.split(8), "kfac")
    assert student.ranks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training is mode for module in (*model.modules(), *student.model.modules()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", Model())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), student.eval()(x))
