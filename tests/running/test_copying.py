"""Copies carry nothing over from an earlier pass, and the original is left as it was."""

import contextlib
import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.errors import ModelError
from hypercompress.running.calling import evaluating
from hypercompress.running.copying import PARALLEL, as_written, copy_of, weights_of


class Counting(nn.Module):
    """Writes into its buffers in each pass: in place, anew, and one that it sizes by its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(7))
        self.register_buffer("samples", torch.tensor(100))
        self.register_buffer("grid", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.samples = self.samples + len(x)
        if len(self.grid) != len(x):
            self.grid = torch.arange(len(x))
        return x


class Keeping(nn.Module):
    """A model that keeps what it computed, for its user to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.seen: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.inner(x).relu()
        self.seen["hidden"] = [self.hidden]
        return self.head(self.hidden)


@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.LazyBatchNorm1d(affine=False)])
def test_a_layer_that_has_no_shape_yet(lazy: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"1\.\w+ has no shape yet .*; run one batch through the model first"):
        as_written(nn.Sequential(nn.Linear(4, 5), lazy))


def test_a_cache_on_the_graph_is_left_behind() -> None:
    model = timm.create_model("levit_128s", pretrained=False, num_classes=3).eval()
    x = torch.randn(1, 3, 224, 224)
    wanted = model(x)  # with gradients: attention biases stay in the model, on this pass's graph
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    again = copy_of(model)
    assert not again.training
    assert not model.training
    torch.testing.assert_close(again(x), wanted)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(again(x), wanted)


def test_flags_are_copied_module_by_module() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    assert [module.training for module in copy_of(model).modules()] == [True, True, False]
    assert [module.training for module in model.modules()] == [True, True, False]


def test_what_is_shared_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    copied = copy_of(model, shared=[model[0].weight])
    assert copied[0].weight is model[0].weight
    others = {id(tensor) for tensor in weights_of(model)} - {id(model[0].weight)}
    assert others.isdisjoint(map(id, weights_of(copied)))
    assert all(map(torch.equal, weights_of(copied), weights_of(model)))
    assert list(map(id, weights_of(copy_of(model, shared=weights_of(model))))) == list(map(id, weights_of(model)))


def test_models_without_values_are_refused() -> None:
    with pytest.raises(ModelError, match="received a ReLU without parameters; expected a model with some; pass the"):
        as_written(nn.ReLU())
    with pytest.raises(ModelError, match="received a model on the meta device, whose parameters hold no values;"):
        as_written(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))


def test_evaluating_leaves_no_cache_and_restores_the_fused_layers() -> None:
    model = timm.create_model("levit_128s", pretrained=False, num_classes=3).train()
    fused = torch.backends.mha.get_fastpath_enabled()
    with evaluating(model):
        assert not torch.backends.mha.get_fastpath_enabled()
        model(torch.randn(1, 3, 224, 224))
    assert torch.backends.mha.get_fastpath_enabled() is fused
    copy.deepcopy(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_undoes_what_is_written_into_buffers_and_leaves_caches(fails: bool) -> None:
    model = Counting()
    before = dict(model.named_buffers())
    with contextlib.suppress(TypeError), evaluating(model):
        model(torch.zeros(3))
        assert (int(model.calls), int(model.samples)) == (8, 103)
        if fails:
            model(None)
    assert (int(model.calls), int(model.samples), model.grid.tolist()) == (7, 100, [0, 1, 2])
    assert model.calls is before["calls"]
    assert model.samples is before["samples"]


def test_evaluating_undoes_moments_that_torch_writes_without_counting_a_version() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    with evaluating(model):
        model[0].train()
        model(torch.randn(8, 3) + 2)
        assert bool(model[0].running_mean.abs().min() > 0)
    assert model[0].running_mean.tolist() == [0, 0, 0]
    assert int(model[0].num_batches_tracked) == 0


def test_evaluating_takes_buffers_of_any_layout() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    model.register_buffer("expanded", torch.full((1,), torch.nan).expand(3))
    with evaluating(model):
        model(torch.ones(1, 2))
    assert model.sparse.is_sparse


def test_activations_that_a_model_keeps_are_copied_without_their_graph() -> None:
    model, x = Keeping(), torch.randn(2, 4)
    wanted = model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    copied = copy_of(model)
    assert copied.hidden.is_leaf
    assert torch.equal(copied.hidden, model.hidden)
    assert copied.seen["hidden"][0] is copied.hidden
    assert model.hidden.grad_fn is not None  # the model's own is as it was
    torch.testing.assert_close(copied(x), wanted)


@pytest.mark.parametrize("how", ["whole", "in place", "a part", "a part in place"])
def test_a_compiled_model_is_read_as_it_was_written(how: str) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
    names = [name for name, _ in plain.named_modules()]
    compiled: nn.Module = plain
    if how == "whole":
        compiled = torch.compile(plain)
    elif how == "in place":
        plain.compile()
    elif how == "a part":
        plain[1] = torch.compile(plain[1])
    else:
        plain[1].compile()
    before = plain[1]
    written = as_written(compiled)
    assert [name for name, _ in written.named_modules()] == names
    assert all(module._compiled_call_impl is None for module in written.modules())
    assert list(map(id, weights_of(written))) == list(map(id, weights_of(compiled)))
    assert not written.training
    assert plain[1] is before  # the caller's stays compiled
    assert as_written(written) is written


@pytest.fixture
def _alone() -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("compiled", ["", "inside", "outside"])
@pytest.mark.parametrize("wrapper", PARALLEL)
def test_a_model_that_is_spread_over_devices_is_read_as_it_was_written(wrapper: Any, compiled: str) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    spread = wrapper(torch.compile(plain) if compiled == "inside" else plain)
    written = as_written(torch.compile(spread) if compiled == "outside" else spread)
    assert type(written) is nn.Sequential
    assert list(map(id, weights_of(written))) == list(map(id, weights_of(plain)))
    assert (written is plain) == (compiled != "inside")


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("wrapper", PARALLEL)
def test_a_student_of_a_model_that_is_spread_over_devices_loads(wrapper: Any, tmp_path: Path) -> None:
    teacher = wrapper(timm.create_model("test_resnet", num_classes=4).eval())
    student = compress(teacher, Budget(params=0.5), generator="svd")
    assert student.architecture is not None
    assert set(student.ranks) <= {name for name, _ in teacher.module.named_modules()}
    student.save_pretrained(tmp_path / "student")
    again, x = from_pretrained(tmp_path / "student"), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again.eval()(x), student.eval()(x), rtol=0, atol=0)
    teacher.train()(x).sum().backward()  # what the wrapper hung on the parameters is still there
    assert all(parameter.grad is not None for parameter in teacher.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_models_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ModelError, match=r"received a model of torch\.jit"):
        as_written(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)))
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"received a model whose 0\.weight was made in torch\.inference_mode"):
        as_written(model)


class Unwilling(nn.Identity):
    def __deepcopy__(self, memo: dict[int, Any]) -> "Unwilling":
        raise NotImplementedError("one of me is enough")


@pytest.mark.parametrize("what", ["lock", "generator", "file"])
def test_what_cannot_be_copied_is_named(what: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU()), nn.Linear(8, 3)).eval()
    model.order = [model[1]]  # whose parts cannot be copied; it is not to blame
    with (tmp_path / "log").open("w") as file:
        model[1][0].held = {"lock": threading.Lock(), "generator": [iter(x for x in "ab")], "file": {"log": file}}[what]
        kind = {"lock": "lock", "generator": "list", "file": "dict"}[what]
        message = (
            rf"received a Sequential with 1\.0\.held \({kind}\) that cannot be copied \(cannot pickle .*\); expected"
        )
        with pytest.raises(ModelError, match=message):
            compress(model, Budget(params=0.8), torch.randn(8, 4).split(4), "kfac")
    with pytest.raises(ModelError, match=r"received a Sequential that cannot be copied \(one of me is enough\); exp"):
        copy_of(nn.Sequential(nn.Linear(4, 4), Unwilling()))


def test_lack_of_memory_for_a_copy_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("copy.deepcopy", fails)
    with pytest.raises(torch.OutOfMemoryError):
        copy_of(nn.Linear(2, 2))


def test_the_model_keeps_what_its_copy_leaves_behind() -> None:
    model = timm.create_model("levit_128s", pretrained=False, num_classes=3).eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    kept = [module.attention_bias_cache for module in model.modules() if hasattr(module, "attention_bias_cache")]
    copied = copy_of(model)
    assert kept
    assert all(kept)
    assert not any(m.attention_bias_cache for m in copied.modules() if hasattr(m, "attention_bias_cache"))
