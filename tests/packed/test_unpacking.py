"""Attention layers of a model are unpacked in a copy, also inside torch's own transformers, and compressed there."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.generator import HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.inspection import inspect
from hypercompress.packed.unpacking import unpack, unpacked_layers
from hypercompress.report import bytes_of
from tests.attending import PROJECTIONS, randomised

# torch packs padded batches into nested tensors in evaluation mode, and says at the first one that they may change.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")


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
