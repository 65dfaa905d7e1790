"""Measuring curvature of any teacher: it stays as it was, and what cannot be measured is refused by name."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hypercompress
from hypercompress.curvature import measure
from hypercompress.errors import DataError, ModelError, NonFiniteError
from hypercompress.inspection import inspect
from hypercompress.running.calibration import split_batches
from tests.explicit import expect, measured, network
from tests.networks import Net, images


def test_activations_in_place_change_nothing() -> None:
    x = images(4, 2, 6, 6)
    _, ours = measured(network(inplace=True).eval(), x)
    model = network(inplace=False).eval()
    for name, curvature in ours.items():
        expect(model, name, x, curvature)


def test_teacher_is_untouched_bit_for_bit() -> None:
    model = network(inplace=True).train()
    model[2].eval()
    model[7].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    x = images(4, 2, 6, 6)
    original = x.clone()
    measured(model, x)
    assert torch.equal(x, original)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_frozen_parameters_give_the_same_statistics() -> None:
    x = images(4, 2, 6, 6)
    free, frozen = network(inplace=True), network(inplace=True).requires_grad_(False)
    for ours, theirs in zip(measured(free, x)[1].values(), measured(frozen, x)[1].values(), strict=True):
        assert torch.equal(ours.fisher, theirs.fisher)
        assert torch.equal(ours.signal, theirs.signal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_teachers_of_any_float_type_are_measured(dtype: torch.dtype) -> None:
    model, x = network(inplace=True).eval(), images(4, 2, 6, 6)
    _, wanted = measured(model, x)
    _, found = measured(model.to(dtype), x.to(dtype))
    for name, curvature in found.items():
        assert curvature.signal.dtype is torch.promote_types(dtype, torch.float32)
        assert float((curvature.signal - wanted[name].signal).norm() / wanted[name].signal.norm()) < 0.05


class Detached(Net):
    """No gradient comes through to its first layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).detach())


class Probe(Net):
    """As a frozen backbone is run below a head."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self[0](x)
        return self[1](x)


def test_a_layer_that_no_gradient_reaches_stays_dense() -> None:
    """Its Fisher would be zero, as if the result did not depend on it."""
    layers, x = (nn.Linear(4, 12), nn.Linear(12, 6)), images(9, 4)
    found = {}
    for build in (Detached, Probe):
        model = build(*layers).eval()
        assert set(measured(model, x)[1]) == {"1"}
        report = hypercompress.compress(model, hypercompress.Budget(params=0.9), x.split(3), "kfac").report
        found[build] = {row["name"]: (row["status"], row["reason"]) for row in report["layers"]}
    rows = found[Detached]
    assert found[Probe] == rows
    assert rows["0"][0] == "unsupported"
    assert rows["0"][1].startswith("no gradient reaches it")
    assert rows["1"][0] == "factored"


def test_a_model_that_no_gradient_reaches_at_all_is_refused() -> None:
    class Unreached(Net):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    with pytest.raises(
        ModelError, match=r"received an output that is detached from the model \(detach, torch.no_grad,"
    ):
        measured(Unreached(nn.Linear(12, 8)), images(3, 12))


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad=True:UserWarning"
)  # in passes without gradients
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_measured_or_refused_with_what_to_do(reentrant: bool) -> None:
    class Checkpointing(Net):
        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self[1](checkpoint(self[2], self[0](x), use_reentrant=reentrant))
            return output

    torch.manual_seed(0)
    model, x = Checkpointing(nn.Linear(12, 8), nn.Linear(8, 5), nn.Tanh()).eval(), images(6, 12)
    if reentrant:
        with pytest.raises(ModelError, match=r"use_reentrant=True.*; expected .*; pass .* set_grad_checkpointing"):
            measured(model, x)
    else:
        assert set(measured(model, x)[1]) == {layer.name for layer in inspect(model, x).candidates}


@pytest.mark.parametrize("forward_fn", [None, lambda model, batch: model(batch)])
def test_a_model_that_writes_into_its_input_is_refused(forward_fn: Any) -> None:
    class Normalising(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x.sub_(0.29).div_(0.3))

    model, x = Normalising(nn.Linear(4, 4)), images(9, 4)
    spec, kept = inspect(model, x.clone(), lambda model, batch: model(batch)), x.clone()
    split = split_batches(x.split(3), torch.device("cpu"))
    with pytest.raises(ModelError, match=r"received a model that writes into its input.*batch\.clone"):
        measure(model, spec, split.statistics, forward_fn=forward_fn)
    assert torch.equal(x, kept)
    measure(model, spec, x.split(3), forward_fn=lambda model, batch: model(batch.clone()))
    assert torch.equal(x, kept)


def test_empty_data_is_refused() -> None:
    model, x = Net(nn.Linear(4, 4)), images(3, 4)
    with pytest.raises(DataError, match="without a single batch"):
        measure(model, inspect(model, x), [])


def test_nan_in_the_data_is_refused_and_names_the_samples() -> None:
    model, x = Net(nn.Linear(4, 4)), images(3, 4)
    spec = inspect(model, x)
    with pytest.raises(NonFiniteError, match="for samples 3 to 5"):
        measure(model, spec, [x, x * float("nan")])
    assert not any(m._forward_hooks for m in model.modules())


def test_progress_counts_samples() -> None:
    model, x, seen = Net(nn.Linear(4, 4)), images(3, 4), []
    measure(model, inspect(model, x), [x, x[:2]], progress=lambda phase, count: seen.append((phase, count)))
    assert seen == [("curvature", 3), ("curvature", 5)]
