"""Attention layers of a model are unpacked in a copy, also inside torch's own transformers, and compressed there."""

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from hypercompress import Budget, compress, from_pretrained
from hypercompress.architecture import Architecture
from hypercompress.attention import UnpackedAttention
from hypercompress.cli import main
from hypercompress.cli.generate import reachable
from hypercompress.compress import finish
from hypercompress.errors import ArtefactError, BudgetError
from hypercompress.export import FORMATS, export
from hypercompress.generator import HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.inspection import inspect
from hypercompress.kinds import LinearKind, LowRank, registry
from hypercompress.preparation import prepare
from hypercompress.report import bytes_of
from hypercompress.specs import Status
from hypercompress.student import Student
from hypercompress.unpacking import pack_layers, unpack, unpack_layers, unpacked_layers

# torch packs padded batches into nested tensors in evaluation mode, and says at the first one that they may change.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Pooled(nn.Module):
    """Attention of its own between two linear layers: [n, l, 16] to logits [n, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Linear(16, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        output: Tensor = self.head((x + self.attention(x, x, x)[0]).mean(1))
        return output


class Encoder(nn.Module):
    """A padded text encoder: [n, l, 16] and lengths [n] to logits [n, 5]."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options.get("norm_first"))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1])[None] >= lengths[:, None]
        x = self.encoder(x, src_key_padding_mask=padding)
        output: Tensor = self.head(x.masked_fill(padding[..., None], 0).sum(1) / lengths[:, None])
        return output


def only_attention_drops(model: nn.Module) -> nn.Module:
    """What other layers drop depends on how their input lies in memory, which torch leaves in another way."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def randomised(model: nn.Module) -> nn.Module:
    """torch starts some biases at zero, and all layers of an encoder alike."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def batches(count: int = 6, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([7, 7, 4, 2])
    return [{"x": torch.randn(4, 7, 16, generator=generator), "lengths": sizes} for _ in range(count)]


@pytest.fixture(params=[True, False], ids=["fused", "stepwise"])
def _fused(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("_fused")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("kind", ["padding", "mask", "none"])
def test_inside_an_encoder_it_computes_the_same(training: bool, gradients: bool, norm_first: bool, kind: str) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.2, batch_first=True, norm_first=norm_first)
    model = randomised(nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), not norm_first)).train(training)
    only_attention_drops(model)
    unpacked, before = unpack(model), copy.deepcopy(model.state_dict())
    assert list(unpacked_layers(unpacked)) == ["layers.0.self_attn", "layers.1.self_attn"]
    x, seen = torch.randn(3, 6, 16), torch.arange(6)[None] < torch.tensor([6, 4, 1])[:, None]
    options: dict[str, Any] = {
        "padding": {"src_key_padding_mask": ~seen},
        "mask": {"mask": nn.Transformer.generate_square_subsequent_mask(6), "is_causal": True},
        "none": {},
    }[kind]
    outputs = []
    with torch.set_grad_enabled(gradients):
        for network in (model, unpacked):
            torch.manual_seed(0)
            outputs.append(network(x, **options))
    # What stands at padded positions is nobody's business: zeros from the fused kernel, anything stepwise.
    real = seen if kind == "padding" else torch.ones_like(seen)
    torch.testing.assert_close(outputs[1][real], outputs[0][real], rtol=1e-4, atol=1e-5)
    for layer in unpacked.layers:  # type: ignore[union-attr]
        torch.manual_seed(0)
        assert layer(x).shape == x.shape
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but self.use_nested_tensor is False")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_inside_encoder_and_decoder_it_computes_the_same(batch_first: bool, training: bool) -> None:
    model = nn.Transformer(16, 2, 2, 2, 32, 0.1, batch_first=batch_first, norm_first=True)
    model = only_attention_drops(randomised(model)).train(training)
    unpacked = unpack(model)
    assert len(unpacked_layers(unpacked)) == 6
    source, target = (torch.randn(*((3, n) if batch_first else (n, 3)), 16) for n in (5, 4))
    hidden = torch.arange(5)[None] >= torch.tensor([5, 4, 2])[:, None]
    options = {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(4) < 0, "src_key_padding_mask": hidden}
    options["memory_key_padding_mask"] = hidden
    outputs = []
    for network in (model, unpacked):
        torch.manual_seed(0)
        outputs.append(network(source, target, **options))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_no_layer_runs_fused_where_an_attention_is_unpacked() -> None:
    model = unpack(randomised(Encoder()))
    called = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            # Not with a hook: torch takes the fused path only where there is none.
            module.forward = lambda x, name=name, old=module.forward: (called.append(name), old(x))[1]
    with torch.no_grad():
        model(**batches(1)[0])
    layers = [f"self_attn.{name}" for name in PROJECTIONS] + ["linear1", "linear2"]
    assert called == [f"encoder.layers.{index}.{name}" for index in range(2) for name in layers] + ["head"]


def test_a_model_without_attention_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    assert unpack(model) is model


def test_of_a_model_with_attention_other_modules_are_unpacked() -> None:
    model = Pooled().train()
    model.attention.eval()
    model.attention.in_proj_weight.requires_grad_(False)
    unpacked, x = unpack(model), torch.randn(3, 4, 16)
    assert type(model.attention) is nn.MultiheadAttention
    assert type(unpacked.attention) is UnpackedAttention
    assert unpacked.stem.training
    assert not any(module.training for module in unpacked.attention.modules())
    assert {n for n, p in unpacked.named_parameters() if not p.requires_grad} == {
        f"attention.{x}_proj.weight" for x in "qkv"
    }
    same = {n for n, p in unpacked.named_parameters() if any(p is other for other in model.parameters())}
    assert same == {n for n, _ in model.named_parameters() if not n.startswith("attention.")}  # nothing is held twice
    assert not set(model.modules()) & set(unpacked.modules())
    student = compress(model, Budget(params=0.8), generator="svd", example=x)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert bytes_of(unpacked) == bytes_of(model)
    torch.testing.assert_close(unpacked(x), model(x))
    pack_layers(unpacked)
    assert repr(unpacked) == repr(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in unpacked.state_dict().items())


class Special(nn.MultiheadAttention):
    """May compute anything."""


def subclass(model: Pooled) -> None:
    model.attention = Special(16, 2, batch_first=True)


def hooked(model: Pooled) -> None:
    model.attention.register_forward_hook(lambda *_: None)


def hooked_inside(model: Pooled) -> None:
    model.attention.out_proj.register_forward_pre_hook(lambda *_: None)


def patched(model: Pooled) -> None:
    model.attention.forward = model.attention.forward


def parametrised(model: Pooled) -> None:
    parametrize.register_parametrization(model.attention, "in_proj_weight", nn.Identity())


def parametrised_inside(model: Pooled) -> None:
    orthogonal(model.attention.out_proj)


def adapted(model: Pooled) -> None:
    model.attention.adapter = nn.Linear(16, 2)


def with_a_buffer(model: Pooled) -> None:
    model.attention.register_buffer("scale", torch.ones(()))


def tied(model: Pooled) -> None:
    model.head = nn.Linear(16, 16)
    model.head.weight = model.attention.out_proj.weight


def test_an_attention_under_two_names_is_unpacked_under_both() -> None:
    model, x = Pooled().eval(), torch.randn(2, 4, 16)
    model.again = model.attention
    apart = unpack(model)
    assert isinstance(apart.again, UnpackedAttention)
    assert apart.again is apart.attention
    torch.testing.assert_close(apart(x), model(x))
    pack_layers(apart)
    assert type(apart.again) is nn.MultiheadAttention
    assert apart.again is apart.attention


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (subclass, Status.UNSUPPORTED, "a Special may compute anything"),
        (hooked, Status.UNSUPPORTED, "it has hooks or a forward of its own"),
        (hooked_inside, Status.UNSUPPORTED, "it has hooks or a forward of its own"),
        (patched, Status.UNSUPPORTED, "it has hooks or a forward of its own"),
        (parametrised, Status.UNSUPPORTED, "a ParametrizedMultiheadAttention may compute anything"),
        (parametrised_inside, Status.UNSUPPORTED, "a ParametrizedNonDynamicallyQuantizableLinear may compute anything"),
        (adapted, Status.UNSUPPORTED, "it holds other parameters or modules than torch gives it"),
        (with_a_buffer, Status.UNSUPPORTED, "it holds other parameters or modules than torch gives it"),
        (tied, Status.UNSUPPORTED, "it shares a parameter with head"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_other_attention_stays_packed_and_says_why(
    change: Callable[[Pooled], None], status: Status, reason: str
) -> None:
    model = Pooled().eval()
    change(model)
    assert unpack(model) is model
    row = next(layer for layer in inspect(model, torch.randn(2, 4, 16)).layers if layer.name == "attention")
    assert row.status is status
    assert row.reason.endswith(reason)
    with pytest.raises(TypeError, match=r"received nn.MultiheadAttention at attention; expected one that can be"):
        unpack_layers(copy.deepcopy(model), ["attention"])
    student = compress(model, Budget(params=0.9), generator="svd", example=torch.randn(2, 4, 16))
    assert student.unpacked == []
    assert not any(name.startswith("attention") for name in student.ranks)


def test_attention_with_a_kind_of_its_own_or_alone_stays_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = nn.MultiheadAttention(16, 2)
    assert unpack(alone) is alone
    model = Pooled()
    monkeypatch.setitem(registry._KINDS, nn.MultiheadAttention, LinearKind())
    assert unpack(model) is model


def test_a_projection_whose_weight_somebody_reads_is_not_factored(tmp_path: Path) -> None:
    class Reader(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.attention.in_proj_weight.mean()

    model = randomised(Reader())
    x = torch.randn(2, 4, 16)
    student = compress(model, Budget(params=0.8), generator="svd", example=x)
    rows = {row["name"]: row for row in student.report["layers"]}
    for name in ("q_proj", "k_proj", "v_proj"):
        assert rows[f"attention.{name}"]["reason"] == "its weight is read directly by the model itself"
    assert student.ranks
    student.save_pretrained(tmp_path / "s")
    assert torch.equal(from_pretrained(tmp_path / "s", Reader())(x), student(x))


def noisy_hypernet() -> HypernetGenerator:
    network = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return HypernetGenerator(network)


@pytest.mark.parametrize("generator", ["svd", "kfac", noisy_hypernet()], ids=lambda g: getattr(g, "name", g))
@pytest.mark.parametrize("budget", [Budget(params=0.35), Budget(macs=0.35)], ids=str)
def test_text_encoder_is_factored_in_its_attention(generator: Any, budget: Budget, tmp_path: Path) -> None:
    teacher, data = randomised(Encoder()), batches()
    before = copy.deepcopy(teacher.state_dict())
    student = compress(teacher, budget, data, generator)
    names = {f"encoder.layers.{index}.self_attn.{name}" for index in range(2) for name in PROJECTIONS}
    assert len(names & set(student.ranks)) >= 6
    assert student.unpacked == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    # Every parameter of the teacher is accounted for, and the budget is a share of the teacher as it was given.
    report = student.report
    assert names <= {row["name"] for row in report["layers"]}
    size = sum(p.numel() for p in teacher.parameters())
    assert report["teacher"]["params"] == size == sum(row["params_before"] for row in report["layers"])
    assert report["student"]["params"] == sum(p.numel() for p in student.parameters())
    assert report["teacher"]["bytes"] == bytes_of(teacher)
    costs = [inspect(model, data[0]) for model in (teacher, student.model)]
    assert report["teacher"]["macs"] == costs[0].macs
    assert report["student"]["macs"] == costs[1].macs
    assert costs[1].total(budget.unit) <= budget.share * costs[0].total(budget.unit)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(type(teacher.get_submodule(name)) is nn.MultiheadAttention for name in student.unpacked)
    # It comes back from disk bit for bit, and goes dense again.
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", Encoder())
    dense = student.to_dense()
    assert repr(dense) == repr(teacher)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            wanted = student(**data[0])
            assert torch.equal(loaded(**data[0]), wanted)
            torch.testing.assert_close(dense(**data[0]), wanted, rtol=1e-4, atol=1e-4)


def test_student_is_fine_tuned_and_what_was_frozen_stays_so() -> None:
    teacher, data = randomised(Encoder(dropout=0.0)), batches()
    teacher.encoder.layers[0].requires_grad_(False)
    student = compress(teacher, Budget(params=0.4), data, "kfac", refit=False)
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in student.named_parameters() if name.startswith("model.encoder.layers.0.")}
    with torch.no_grad():
        wanted = [teacher(**batch) for batch in data]
    before = copy.deepcopy(student.state_dict())
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(60):
        loss = (student.train()(**data[step % len(data)]) - wanted[step % len(data)]).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-6:]) < 0.3 * sum(losses[:6])
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved == set(dict(student.named_parameters())) - frozen
    dense = student.to_dense()
    thawed = {name for name, p in dense.named_parameters() if p.requires_grad}
    assert thawed == {name for name, p in teacher.named_parameters() if p.requires_grad}


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    model = zoo.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return randomised(model)


@pytest.mark.parametrize("kind", FORMATS)
def test_torchvision_transformer_is_compressed_and_exported(kind: str, tmp_path: Path) -> None:
    images = torch.randn(24, 3, 32, 32)
    student = compress(small_vit(), Budget(params=0.4), images.split(4), "kfac")
    assert len([name for name in student.ranks if name.rpartition(".")[2] in PROJECTIONS]) >= 6
    exported = export(student, tmp_path / "student.file", kind, input_size=(3, 32, 32))
    assert exported.max_difference <= 1e-4


def test_a_student_of_a_student_is_unpacked_once(tmp_path: Path) -> None:
    data = list(torch.randn(24, 3, 32, 32).split(4))
    once = compress(small_vit(), Budget(params=0.6), data, "kfac")
    twice = compress(once.model, Budget(params=0.6), data, "kfac")
    assert twice.unpacked == once.unpacked
    twice.save_pretrained(tmp_path / "s")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s", small_vit())(data[0]), twice(data[0]))
        torch.testing.assert_close(twice.to_dense()(data[0]), twice(data[0]), rtol=1e-3, atol=1e-3)
    assert repr(twice.to_dense()) == repr(small_vit())


def test_what_is_no_linear_layer_any_more_stays_unpacked() -> None:
    model = unpack(Pooled())
    model.attention.q_proj = nn.Sequential(model.attention.q_proj)
    pack_layers(model)
    assert type(model.attention) is UnpackedAttention


def test_a_model_known_by_name_is_recognised_as_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = Architecture("small_vit", {}, {})
    asked: list[nn.Module] = []
    facade = sys.modules["hypercompress.compress"]  # the package has a function of the name
    monkeypatch.setattr(facade, "architecture_of", lambda model: (asked.append(model), known)[1])
    for module in ("student", "differences"):
        monkeypatch.setattr(f"hypercompress.{module}.build", lambda architecture: small_vit())
    teacher, images = small_vit(), torch.randn(2, 3, 32, 32)
    plan = prepare(teacher, None, "svd", example=images)
    assert plan.original is teacher
    assert unpacked_layers(plan.teacher)
    student = finish(plan, Budget(params=0.5))
    assert asked == [teacher]
    student.save_pretrained(tmp_path / "s")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(images), student(images))


def test_the_command_line_reaches_what_only_unpacked_attention_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = small_vit()
    teacher.pretrained_cfg = {"input_size": (3, 32, 32)}  # type: ignore[assignment]
    spec, budget = inspect(teacher, torch.randn(2, 3, 32, 32)), Budget(params=0.3)
    with pytest.raises(BudgetError):
        reachable(spec, budget)
    monkeypatch.setattr("hypercompress.cli.inputs.load_dense", lambda *_: (teacher, None, None))
    assert main(["generate", "resnet18", str(tmp_path / "s"), "--params", "0.3", "--generator", "svd"]) == 0
    student = from_pretrained(tmp_path / "s", small_vit())
    assert len(student.unpacked) == 2
    assert sum(p.numel() for p in student.parameters()) <= 0.3 * spec.params


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    student = compress(randomised(Pooled()), Budget(params=0.7), generator="svd", example=torch.randn(2, 4, 16))
    student.save_pretrained(tmp_path / "s")
    return tmp_path / "s"


def rewritten(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("value", ["attention", {"attention": 1}, [3], None, [["attention"]]], ids=str)
def test_a_list_of_names_that_somebody_wrote_is_refused(folder: Path, value: Any) -> None:
    with pytest.raises(ArtefactError, match="unpacked layers that are no list of names; expected the folder as it was"):
        from_pretrained(rewritten(folder, unpacked=value), Pooled())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "has no attribute"),
        ("stem", "received Linear at stem"),
        ("", "received Pooled at "),
        ("stem.weight", ""),
    ],
)
def test_names_that_are_no_attention_are_refused(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(ArtefactError, match=rf"received a plan that unpacks layers \(.*{reason}.*\); expected"):
        from_pretrained(rewritten(folder, unpacked=["attention", name]), Pooled())


def test_another_skeleton_is_refused(folder: Path) -> None:
    skeleton = Pooled()
    subclass(skeleton)
    with pytest.raises(ArtefactError, match=r"but a Special may compute anything\); expected plain ones there"):
        from_pretrained(folder, skeleton)


def test_an_unpacked_skeleton_is_as_good_as_a_packed_one(folder: Path) -> None:
    x = torch.randn(2, 4, 16)
    assert torch.equal(from_pretrained(folder, unpack(Pooled()))(x), from_pretrained(folder, Pooled())(x))


def test_folders_without_the_key_load_as_before(tmp_path: Path) -> None:
    model, x = randomised(Pooled()), torch.randn(2, 4, 16)
    before = Student(model)  # what an earlier version left: attention as torch has it
    before.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(rewritten(tmp_path / "s", unpacked=...), Pooled())
    assert loaded.unpacked == []
    assert torch.equal(loaded(x), before(x))


def test_low_rank_projections_are_in_the_place_of_linear_ones(folder: Path) -> None:
    student = from_pretrained(folder, Pooled())
    attention = student.model.attention
    assert any(isinstance(layer, LowRank) for layer in attention.children())
    packed = student.to_dense().attention
    torch.testing.assert_close(packed.in_proj_weight, attention.in_proj_weight)
