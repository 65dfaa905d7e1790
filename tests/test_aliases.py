"""One module under several names: one layer that is called several times, whose twin stands under every name."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hypercompress import Budget, compress, from_pretrained
from hypercompress.inspection import inspect
from hypercompress.specs import Status, Unit


def macs(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2 // len(x)


class Repeated(nn.Module):
    """One layer and one block under several names, as in CoaT; beside the layer another on the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleDict({"layer": nn.Linear(12, 12)})
        self.again, self.tied = self.first["layer"], nn.Linear(12, 12)
        self.tied.weight = self.again.weight
        self.block = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12))
        self.same = nn.ModuleList([self.block, nn.ReLU(), self.block])
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.again(self.first["layer"](x).tanh()).tanh()).tanh()
        for module in (self.block, *self.same):
            x = module(x)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("unit", [Unit.PARAMS, Unit.MACS])
def test_a_module_under_several_names_is_one_layer_called_several_times(unit: Unit, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        Repeated().double().eval(),
        torch.randn(48, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    )
    spec = inspect(model, x[:3])
    calls = {layer.name: (layer.calls, layer.shared, layer.status) for layer in spec.candidates}
    assert calls == {
        "first.layer": (3, ("tied",), Status.FACTORED),
        "block.0": (3, (), Status.FACTORED),
        "block.2": (3, (), Status.FACTORED),
        "head": (1, (), Status.FACTORED),
    }
    assert (spec.params, spec.macs) == (sum(p.numel() for p in model.parameters()), macs(model, x))
    student = compress(model, Budget(**{str(unit): 0.6}), x.split(12), "kfac")
    assert {"first.layer", "tied", "block.0", "block.2"} <= set(student.ranks)
    assert sum(p.numel() for p in student.parameters()) == student.report["student"]["params"]
    assert macs(student, x) == student.report["student"]["macs"]
    assert student.report["student"][str(unit)] <= 0.6 * spec.total(unit)
    student.save_pretrained(tmp_path / "s")
    for twin in (
        student.model,
        from_pretrained(tmp_path / "s", Repeated().double()).model,
        copy.deepcopy(student.model),
    ):
        assert twin.first["layer"] is twin.again
        assert twin.again is not twin.tied
        assert twin.block is twin.same[0] is twin.same[2]
        assert torch.equal(twin(x), student(x))
    dense = student.to_dense()
    assert {type(m) for m in (dense.again, dense.tied, dense.block[0])} == {nn.Linear}
    assert dense.first["layer"] is dense.again
    torch.testing.assert_close(dense(x), student(x))


def test_what_timm_builds_under_several_names_loads_again(tmp_path: Path) -> None:
    args = {"embed_dims": [16, 32, 32, 32], "serial_depths": [1, 1, 1, 1], "parallel_depth": 1, "num_heads": 8}
    model = timm.create_model("coat_mini", img_size=64, num_classes=5, **args).eval()
    student, x = compress(model, Budget(params=0.6), generator="svd"), torch.randn(2, 3, 64, 64)
    shared = {name for name in student.ranks if name.startswith("parallel_blocks.0.mlp2")}
    assert shared
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s")
    assert loaded.model.parallel_blocks[0].mlp2 is loaded.model.parallel_blocks[0].mlp3
    with torch.no_grad():
        assert torch.equal(loaded(x), student(x))
