"""Running moments: estimated over data, or made those of the inputs with the function as it was."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from hypercompress.errors import DataError
from hypercompress.running.norms import rebase_norms, reestimate_norms


def test_reestimated_moments_are_those_of_the_data() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Dropout(0.9), nn.BatchNorm1d(5)).eval()
    model[1].train()
    x = torch.randn(40, 4)
    reestimate_norms(model, [x[:20], x[20:]])
    with torch.no_grad():
        y = model[0](x)
        halves = [y[:20], y[20:]]
    torch.testing.assert_close(model[1].running_mean, y.mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in halves]).mean(0))
    assert model[1].momentum == 0.3
    assert [m.training for m in model] == [False, True, False, False]
    with torch.no_grad():
        normalised = torch.cat([F.batch_norm(h, None, None, model[1].weight, model[1].bias, True) for h in halves])
    torch.testing.assert_close(model[3].running_mean, normalised.mean(0), rtol=1e-4, atol=1e-5)


def test_a_small_batch_weighs_by_its_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = nn.Sequential(nn.BatchNorm1d(4)), torch.randn(66, 4, generator=generator) + 2
    x[64:] += 10
    reestimate_norms(model, [x[:64], x[64:]])
    torch.testing.assert_close(model[0].running_mean, x.mean(0))
    torch.testing.assert_close(model[0].running_var, (64 * x[:64].var(0) + 2 * x[64:].var(0)) / 66)
    assert model[0].momentum == 0.1
    assert not model[0]._forward_pre_hooks


def test_reestimation_needs_two_samples_at_once() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    before = model[1].running_var.clone()
    for batches in ([], [torch.randn(1, 4)]):
        with pytest.raises(DataError, match="received no batch of two or more samples"):
            reestimate_norms(model, batches)
    assert torch.equal(model[1].running_var, before)


def network() -> nn.Sequential:
    """Norms whose moments are not those of their inputs, one of them in a layer after it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, -1.0), (module.bias, -1.0), (module.running_mean, -2.0)):
                tensor.data.uniform_(low, 2.0)
            module.running_var.uniform_(0.2, 3.0)
    return model


def test_a_rebased_norm_computes_the_same_and_has_the_moments_of_its_inputs() -> None:
    model, x = network().eval(), torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1
    before = copy.deepcopy(model)
    model[1].train()
    rebase_norms(model, [x[:40], x[40:]])
    assert [module.training for module in model] == [False, True, False, False, False, False]
    assert not any(module._forward_pre_hooks for module in model)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-4)
        inputs = {1: before[0](x), 4: before[:4](x)}
        for place, found in inputs.items():
            torch.testing.assert_close(model[place].running_mean, found.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                model[place].running_var, found.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5
            )
        # On these images training mode takes the same moments, so it computes the same; before it did not.
        wanted = before(x)
        torch.testing.assert_close(model.train()(x), wanted, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(before.train()(x), wanted, atol=0.1)


def test_a_norm_that_the_model_runs_by_the_batch_is_not_rebased() -> None:
    class ByBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm.train()(x)
            return y

    model, x = ByBatch().eval(), torch.randn(16, 4) * 3 + 1
    before = copy.deepcopy(model.state_dict())
    rebase_norms(model, [x])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rebasing_twice_changes_nothing() -> None:
    model, x = network().eval(), torch.randn(32, 2, 8, 8)
    rebase_norms(model, [x])
    once = copy.deepcopy(model.state_dict())
    rebase_norms(model, [x])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, once[name], rtol=1e-4, atol=1e-5)


def test_norms_that_cannot_be_rebased_stay() -> None:
    shared, never = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    twin = nn.BatchNorm1d(4)
    twin.weight, twin.bias = shared.weight, shared.bias
    bare, free = nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.never = nn.Sequential(shared, twin, bare, free), never

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.used(x)
            return output

    model = Model().eval()
    before = copy.deepcopy(model.state_dict())
    rebase_norms(model, [torch.randn(16, 4) + 5])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_channels_that_are_not_finite_stay_alone() -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(3)).eval(), torch.randn(16, 3)
    x[0, 1] = torch.inf
    rebase_norms(model, [x])
    norm = model[0]
    assert (norm.running_mean[1], norm.running_var[1], norm.weight[1], norm.bias[1]) == (0, 1, 1, 0)
    torch.testing.assert_close(norm.running_mean[[0, 2]], x[:, [0, 2]].mean(0), rtol=1e-4, atol=1e-5)


def test_a_norm_that_is_called_twice_has_the_moments_of_both() -> None:
    norm = nn.BatchNorm1d(3)
    model, x = nn.Sequential(norm, nn.Linear(3, 3), norm).eval(), torch.randn(32, 3)
    before = copy.deepcopy(model)
    rebase_norms(model, [x])
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-4)
        inputs = torch.cat([x, before[:2](x)])
    torch.testing.assert_close(norm.running_mean, inputs.mean(0), rtol=1e-4, atol=1e-5)


def test_a_norm_whose_shift_the_model_reads_stays() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.free = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.free(self.read(x) + self.read.bias)
            return output

    torch.manual_seed(0)
    model, x = Reading().eval(), torch.randn(32, 3) * 2 + 1
    model.read.bias.data.normal_()
    with torch.no_grad():
        wanted = model(x)
        rebase_norms(model, [x])
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    assert not model.read.running_mean.any()
    assert model.free.running_mean.any()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct])
def test_norms_of_torch_and_timm_are_rebased(kind: Callable[[int], nn.BatchNorm2d]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 6, 3), kind(6)).eval(), torch.randn(32, 2, 6, 6) * 3 + 1
    with torch.no_grad():
        wanted = model(x)
        rebase_norms(model, [x])
        torch.testing.assert_close(model[1].running_mean, model[0](x).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)


class FromOne(nn.BatchNorm2d):
    """Its scale is the distance from one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, 1 + self.weight, self.bias, eps=self.eps)


class Softplus(nn.Module):
    """A weight that is positive."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.softplus(weight)


def with_positive_scale() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    parametrize.register_parametrization(norm, "weight", Softplus())
    return norm


def with_its_own_forward() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    norm.forward = lambda x: FromOne.forward(norm, x)  # type: ignore[arg-type, method-assign]
    return norm


@pytest.mark.parametrize(
    "norm",
    [
        lambda: FromOne(6),
        with_its_own_forward,
        with_positive_scale,
        lambda: prune.l1_unstructured(nn.BatchNorm2d(6), "weight", 0.3),
    ],
    ids=["subclass", "forward", "parametrized", "pruned"],
)
def test_a_norm_that_may_compute_another_function_stays(norm: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 6, 3), norm()).eval(), torch.randn(32, 2, 6, 6) * 3 + 1
    model[1].running_var.uniform_(0.5, 2)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        wanted = model(x)
        rebase_norms(model, [x])
        assert torch.equal(model(x), wanted)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", ["mean", "variance", "detached", "normalising", "shared"])
def test_a_norm_whose_moments_others_read_stays(how: str) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.free = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.other = nn.Module()
            if how == "shared":
                self.other.register_buffer("mean", self.read.running_mean)

        def forward(self, x: Tensor) -> Tensor:
            y, norm = self.read(x), self.read
            assert norm.running_mean is not None
            assert norm.running_var is not None
            if how == "mean":
                y = y + norm.running_mean
            elif how == "variance":
                y = y * norm.running_var.sqrt()
            elif how == "detached":
                y = y + norm.running_mean.detach().numpy().mean()
            elif how == "normalising":
                y = y + F.batch_norm(x, norm.running_mean, norm.running_var)
            output: Tensor = self.free(y)
            return output

    torch.manual_seed(0)
    model, x = Reading().eval(), torch.randn(32, 3) * 2 + 1
    with torch.no_grad():
        wanted = model(x)
        rebase_norms(model, [x])
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    assert not model.read.running_mean.any()
    assert model.free.running_mean.any()


def test_asking_moments_for_their_type_does_no_harm() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            assert self.norm.running_mean is not None
            output: Tensor = self.norm(x.to(self.norm.running_mean.dtype)) / self.norm.running_mean.shape[0]
            return output

    model = Asking().eval()
    rebase_norms(model, [torch.randn(32, 3) + 1])
    assert model.norm.running_mean.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rebased_in_half_precision_the_function_stays_but_for_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)), torch.randn(256, 3, 10, 10) + 1
    model[0].bias.data += 30  # far from zero the moments, as they are stored, are coarse
    with torch.no_grad():
        for _ in range(60):
            model(x)
        model, x = model.eval().to(dtype), x.to(dtype)
        before = copy.deepcopy(model).float()(x.float())
        rebase_norms(model, [x])
        change = model.float()(x.float()) - before
    assert change.abs().max() < 2 * torch.finfo(dtype).eps * before.std()
