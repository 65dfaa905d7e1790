"""Steps of gradient descent after the closed form: what they touch, and their rate."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, adapt, compress
from hypercompress.errors import NonFiniteError
from hypercompress.report import bytes_of
from hypercompress.saved.card import transfer_line
from hypercompress.transfer.rates import CANDIDATES
from hypercompress.transfer.tuning import WARMUP, Tuned, schedule, tune
from tests.transfer.models import Make, model_of


def test_steps_lower_the_loss_and_touch_norms_biases_and_head_only(make_task: Make) -> None:
    model, (x, y) = model_of(), make_task(shots=10)
    start = adapt(model, x, y, network="none", views=0)
    some: dict[str, Any] = {"network": "none", "views": 0, "steps": 20, "tuned": "norms", "rate": 1e-3}
    tuned = adapt(model, x, y, **some)  # its weights are random: the default is too high
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert float(loss(tuned(x), y)) < float(loss(start(x), y))
    changed = {n for n, p in tuned.model.named_parameters() if not torch.equal(p, start.model.get_parameter(n))}
    wanted = {n for n, p in tuned.model.named_parameters() if p.ndim == 1 or n.startswith("fc")}
    assert changed == wanted
    assert all(torch.equal(b, start.model.get_buffer(n)) for n, b in tuned.model.named_buffers())
    again = adapt(model, x, y, **some)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in tuned.state_dict().items())


@pytest.mark.parametrize("factored", [False, True])
def test_steps_on_everything(factored: bool, make_task: Make) -> None:
    model, (x, y) = model_of(), make_task(shots=10)
    start: nn.Module = compress(model, Budget(params=0.5), generator="svd", example=x[:2]) if factored else model
    ridge = adapt(start, x, y, network="none", views=0)
    tuned = adapt(start, x, y, network="none", views=0, steps=20, rate=2e-5)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert float(loss(tuned(x), y)) < float(loss(ridge(x), y))
    same = [n for n, p in tuned.model.named_parameters() if torch.equal(p, ridge.model.get_parameter(n))]
    assert same == []
    assert all(torch.equal(b, ridge.model.get_buffer(n)) for n, b in tuned.model.named_buffers())
    assert (tuned.report["transfer"]["tuned"], ridge.report["transfer"]["tuned"]) == ("all", None)
    assert adapt(start, x, y, network="none", views=0, steps=1).report["transfer"]["rate"] == CANDIDATES[Tuned.ALL][0]


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 201])
def test_the_rate_rises_and_falls(steps: int) -> None:
    shares = [schedule(steps)(step) for step in range(steps + 1)]
    top = shares.index(max(shares))
    assert all(0 < share <= 1 for share in shares[:-1])
    assert shares[-1] == pytest.approx(0, abs=1e-12)
    assert shares == sorted(shares[:top]) + sorted(shares[top:], reverse=True)
    assert abs(top - WARMUP * steps) <= 1
    assert shares[0] <= 1 / 3
    assert steps < 10 or max(shares) > 0.8


def test_a_single_step_is_a_third_of_the_rate(make_task: Make) -> None:
    model, (x, y) = model_of(), make_task(shots=4)
    options = {"network": "none", "views": 0, "rate": 3e-3}
    start, moved = (dict(adapt(model, x, y, steps=steps, **options).named_parameters()) for steps in (0, 1))
    furthest = max(float((moved[name] - value).detach().abs().max()) for name, value in start.items())
    assert furthest == pytest.approx(1e-3, rel=0.01), "AdamW's first step is the rate wherever there is a gradient"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_of_a_model_in_half_precision_are_taken_in_single(dtype: torch.dtype, make_task: Make) -> None:
    model, (x, y) = model_of().to(dtype), make_task(shots=4)
    x, some = x.to(dtype), {"network": "none", "views": 2, "steps": 3, "rate": 1e-5}
    tuned = adapt(model, x, y, **some)
    single = adapt(copy.deepcopy(model).float(), x.float(), y, **some).to(dtype)
    assert {p.dtype for p in tuned.parameters()} == {p.dtype for p in model.parameters()} == {dtype}
    assert all(torch.equal(value, single.state_dict()[name]) for name, value in tuned.state_dict().items())
    assert all(bool(p.isfinite().all()) for p in tuned.parameters())
    assert tuned.report["student"]["bytes"] == bytes_of(tuned)


class _Kink(nn.Module):
    """Finite outputs with a gradient that is none: the root's at 0, times 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + (0 * self.weight).sqrt()


def test_weights_that_the_last_step_breaks_are_told_of() -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity in the weights after the last step"):
        tune(_Kink(), ["weight"], lambda: [(torch.randn(3, 2), torch.tensor([0, 1, 0]))], 1, 1e-3)


def test_what_steps_refuse_leaves_the_model_as_it_was() -> None:
    """Whatever is raised before the first of them, too."""
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="learning rate"):
        tune(model, ["bias"], list, 1, -1.0)
    assert [p.requires_grad for p in model.parameters()] == [True, False]


@pytest.mark.parametrize("levels", [False, True])
def test_frozen_parameters_stay_and_the_head_is_tuned(levels: bool, make_task: Make) -> None:
    model, (x, y) = model_of(), make_task(shots=4)
    options: dict[str, Any] = {"network": "none", "views": 0, "steps": 3, "rate": 1e-3, "levels": levels}
    model.requires_grad_(False)
    model.layer4.requires_grad_(True)
    student = adapt(model, x, y, **options)
    head = {"fc.weight", "fc.bias"}
    changed = {n for n, p in student.model.named_parameters() if n not in head and not p.equal(model.get_parameter(n))}
    assert changed == {n for n, _ in model.named_parameters() if n.startswith("layer4")}
    start = adapt(model, x, y, **options | {"steps": 0})
    assert not torch.equal(student.model.fc.weight, start.model.fc.weight)
    assert {n for n, p in student.model.named_parameters() if p.requires_grad} == changed | head
    told = student.report["transfer"]
    frozen = sum(not p.requires_grad for p in student.parameters())
    assert told["frozen"] == frozen
    assert f"3 steps on all parameters but {frozen} frozen tensors at" in transfer_line(told)
    norms = adapt(model, x, y, tuned="norms", **options).report["transfer"]["frozen"]
    of_one_axis = [n for n, p in model.named_parameters() if p.ndim == 1 and not p.requires_grad and n not in head]
    assert norms == len(of_one_axis), "weights of convolutions would not be tuned anyway"
    for tuned in ("all", "norms"):
        with pytest.warns(UserWarning, match=r"are frozen; .*the head alone is tuned") as warned:
            whole = adapt(model.requires_grad_(False), x, y, tuned=tuned, **options)
        assert [Path(one.filename) for one in warned if "frozen" in str(one.message)] == [Path(__file__)]
        assert "3 steps on the head alone at" in transfer_line(whole.report["transfer"])
        assert all(p.equal(model.get_parameter(n)) for n, p in whole.model.named_parameters() if n not in head)
        assert not torch.equal(whole.model.fc.weight, start.model.fc.weight)
