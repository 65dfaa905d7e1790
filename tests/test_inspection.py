"""Every weight-bearing module is listed with the right status, place and cost."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hypercompress import Budget, compress
from hypercompress.errors import ModelError, NonFiniteError
from hypercompress.inspection import inspect, require_finite
from hypercompress.running.calling import call_model, evaluating
from hypercompress.specs import ModelSpec, Status, Unit
from tests.lookup import row


def macs(model: nn.Module, *inputs: Tensor) -> int:
    """An independent count, with attention as products that torch's counter knows."""
    with torch.no_grad(), evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2 // len(inputs[0])


class Small(nn.Module):
    """Convolutions with norms in every arrangement."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.mix = nn.Conv2d(16, 24, 1)
        self.act = nn.ReLU(inplace=True)
        self.late_norm = nn.BatchNorm2d(24)
        self.tiny = nn.Linear(24, 1)
        self.unused = nn.Linear(24, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x))
        x = self.grouped(self.depthwise(x))
        x = self.late_norm(self.act(self.mix(x))).mean((2, 3))
        return self.head(x) * self.tiny(x)


@pytest.fixture
def small() -> ModelSpec:
    return inspect(Small(), torch.randn(2, 3, 16, 12))


def test_every_module_with_parameters_is_listed_once_in_order(small: ModelSpec) -> None:
    names = [layer.name for layer in small.layers]
    expected = ["stem", "stem_norm", "depthwise", "grouped", "mix", "late_norm", "head", "tiny", "unused"]
    assert names == expected
    assert small.params == sum(layer.params for layer in small.layers) == sum(p.numel() for p in Small().parameters())
    assert small.input_size == (3, 16, 12)


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("stem", Status.FACTORED, ""),
        ("stem_norm", Status.KEPT, "a normalisation has no matrix"),
        ("depthwise", Status.KEPT, "depthwise convolution (groups=16)"),
        ("grouped", Status.FACTORED, ""),
        ("mix", Status.FACTORED, ""),
        ("tiny", Status.KEPT, "1 x 24: even rank 1 is no smaller than dense"),
        ("unused", Status.UNSUPPORTED, "its forward was never called in a pass of the example"),
        ("head", Status.FACTORED, ""),
    ],
)
def test_status_and_reason(small: ModelSpec, name: str, status: Status, reason: str) -> None:
    assert (row(small, name).status, row(small, name).reason) == (status, reason)


def test_shapes_positions_and_costs(small: ModelSpec) -> None:
    stem, head = row(small, "stem"), row(small, "head")
    assert (stem.out, stem.d, stem.positions, stem.bias) == (16, 27, 8 * 6, False)
    assert (head.out, head.d, head.positions, head.bias) == (10, 24, 1, True)
    assert stem.dense_macs == 16 * 27 * 48
    assert stem.rank_macs == (16 + 27) * 48
    assert stem.max_rank == (16 * 27 - 1) // (16 + 27)
    assert small.macs == macs(Small(), torch.randn(2, 3, 16, 12))
    assert sum(layer.dense_macs for layer in small.layers) == small.macs


def test_only_a_norm_that_reads_the_output_itself_is_a_follower(small: ModelSpec) -> None:
    assert row(small, "stem").follower == "stem_norm"
    assert row(small, "mix").follower is None  # the activation in place came between
    assert row(small, "grouped").follower is None
    assert row(small, "mix").feeder == "stem_norm"
    assert row(small, "stem").feeder is None


def test_tied_weights_are_counted_once_and_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
            self.head.weight = self.embed.weight
            self.free = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.free(self.embed(x)).mean(1))

    spec = inspect(Tied(), torch.zeros(2, 4, dtype=torch.int64))
    assert (row(spec, "head").status, row(spec, "head").reason) == (
        Status.TIED,
        "embed is of another class (Embedding); shares its weight with embed",
    )
    assert row(spec, "embed").status is Status.TIED
    assert row(spec, "free").positions == 4
    assert spec.params == 54 + 42


def test_module_under_two_names_is_one_layer_called_twice() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    model.append(model[0])
    spec = inspect(model, torch.randn(2, 6))
    assert [layer.name for layer in spec.layers] == ["0"]
    assert (row(spec, "0").status, row(spec, "0").calls, row(spec, "0").positions) == (Status.FACTORED, 2, 2)
    assert (spec.params, spec.macs) == (42, 72)


def test_layer_that_sees_no_batch_has_a_position_at_least() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc, self.head = nn.Parameter(torch.randn(1, 8)), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.fc(self.table))

    spec = inspect(Table(), torch.randn(4, 8))
    assert row(spec, "fc").positions == 1


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_mambaout"])
def test_macs_are_those_of_the_flop_counter(name: str) -> None:
    model = timm.create_model(name, pretrained=False)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    spec = inspect(model, x)
    assert spec.macs == macs(model, x)
    assert sum(layer.dense_macs for layer in spec.layers) <= spec.macs
    assert inspect(model, x[:1]).macs == spec.macs


TABLES: dict[str, dict[str, Any]] = {  # transformers that compute something once for a batch
    "swinv2_tiny_window8_256": {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1,), "num_heads": (2,)},
    "swinv2_cr_tiny_224": {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1,), "num_heads": (2,)},
    "xcit_nano_12_p16_224": {"embed_dim": 32, "depth": 1, "num_heads": 2},
}


@pytest.mark.parametrize("name", TABLES)
def test_what_runs_once_for_a_batch_is_counted_whole(name: str) -> None:
    model, x = timm.create_model(name, num_classes=7, **TABLES[name]).eval(), torch.randn(8, 3, 32, 32)
    spec = inspect(model, x)
    assert spec == inspect(model, x[:1])
    assert spec.macs == macs(model, x[:1]) > macs(model, x)
    student = compress(model, Budget(macs=0.55), generator="svd", example=x)
    assert student.report["student"]["macs"] == macs(student, x[:1]) <= 0.55 * spec.macs


@pytest.mark.parametrize("how", ["one sample cannot run", "other layers run", "tensors of other lengths"])
def test_one_sample_that_tells_nothing_of_a_batch_changes_no_row(how: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.some, self.head = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor, places: Tensor) -> Tensor:
            if how == "one sample cannot run" and len(x) < 2:
                raise ValueError("two samples at least")
            if how != "other layers run" or len(x) > 1:
                x = self.some(x)
            return self.head(x + self.table(places[:1]))

    x = torch.randn(4, 8)
    example = {"x": x, "places": torch.randn(7 if how.startswith("tensors") else 4, 2)}
    spec = inspect(Odd(), example)
    assert [row(spec, name).positions for name in ("table", "some", "head")] == [1, 1, 1]
    assert spec.macs == 8 * 8 + 8 * 5 + 2 * 8  # what runs once for a batch counts whole, as in its row


def test_model_is_left_as_it_was() -> None:
    model = Small().train()
    model.stem_norm.eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    inspect(model, torch.randn(2, 3, 16, 12))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_flags_come_back_after_an_error() -> None:
    model = Small().train()
    with pytest.raises(RuntimeError):
        inspect(model, torch.randn(2, 5, 16, 12))
    assert model.head.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "batch", [torch.ones(2, 4), (torch.ones(2, 4), torch.zeros(2)), [torch.ones(2, 4)], {"input": torch.ones(2, 4)}]
)
def test_batches_are_tensors_tuples_or_dicts(batch: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    wanted = model(torch.ones(2, 4))
    assert torch.equal(call_model(model, batch), wanted)
    assert inspect(model, batch).macs == 16


def test_keywords_that_a_model_does_not_take_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ModelError, match=r"keys input, label for a model of forward\(input\).*pass forward_fn=lambda"):
        inspect(model, {"input": torch.ones(2, 4), "label": torch.zeros(2)})
    with pytest.raises(TypeError, match="must be Tensor"):  # of the model's own making
        call_model(model, {"input": "text"})


def test_other_batches_go_through_forward_fn() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(a), self.fc(b)

    batch = (torch.ones(2, 4), torch.ones(2, 4))
    spec = inspect(Two(), batch, lambda model, pair: model(*pair)[0])
    assert row(spec, "fc").positions == 2
    with pytest.raises(
        ModelError, match=r"returns tuple of 0 \[2, 4\], 1 \[2, 4\]; expected one tensor, or logits; pass forward_fn="
    ):
        inspect(Two(), {"a": batch[0], "b": batch[1]})
    with pytest.raises(ModelError, match="received an example of type str; expected a batch that holds a tensor"):
        inspect(Two(), "text")


def test_weights_that_are_not_finite_are_named() -> None:
    model = Small()
    model.head.weight.data[0, 0] = float("nan")
    model.stem_norm.running_var[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"received NaN or infinity in head\.weight, stem_norm\.running_var;"):
        require_finite(model)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"and \d+ more;"):
        inspect(model, torch.randn(2, 3, 16, 12))


def test_a_layer_called_with_a_keyword_costs_the_same() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(input=x)

    x = torch.randn(2, 16, 5, 5)
    ours, usual = inspect(Keyword(), x).candidates[0], inspect(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), x)
    theirs = usual.candidates[0]
    assert ours.input_positions == theirs.input_positions > 0
    assert ours.cost(Unit.MACS, 4, 4) == theirs.cost(Unit.MACS, 4, 4)
