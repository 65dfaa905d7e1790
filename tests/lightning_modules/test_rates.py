"""A learning rate of ``auto``: Polyak's step of the student when the steps begin."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from hypercompress import from_pretrained
from hypercompress.data import Preprocess, open_data
from hypercompress.errors import NonFiniteError
from hypercompress.losses import distillation_kl
from hypercompress.running.norms import remembering_norms
from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.optimization import Optimization
from lightning_modules.rates import HIGHEST, OF_NUMBERS, PER_POLYAK, kl_and_slope, rate_for
from lightning_modules.source import TeacherSource

Folders = tuple[Path, Path]
HERE = SingleDeviceStrategy(torch.device("cpu"))


def distilled(folders: Folders, student: Path | None = None, **options: Any) -> Distillation:
    return Distillation(student or folders[1], TeacherSource(str(folders[0])), **options)


def images(**options: object) -> ImageDataModule:
    return ImageDataModule("fashion_mnist_mini", **{"batch_size": 32, "limit": 256, "val_limit": 128, **options})


class Rates(Callback):
    """The rates that the steps were taken at, and the batches."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.batches: list[Tensor] = []

    def on_train_batch_start(self, _trainer: Trainer, _module: LightningModule, batch: Any, _place: int) -> None:
        self.batches.append(batch[0])

    def on_before_optimizer_step(
        self, _trainer: Trainer, _module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        found = {group["lr"] for group in optimizer.param_groups}
        assert len(found) == 1
        self.seen.append(found.pop())


def alone(batch: Tensor, target: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """A single step of one batch."""
    return [[(batch, target)]]


def expected_rate(folders: Folders, *steps: Tensor) -> float:
    """By the definitions of the KL and of its gradient's 1-norm, of networks loaded anew."""
    rates = list[float]()
    for batch in steps:
        teacher, student = (from_pretrained(folder).model.eval() for folder in folders)
        p, q = F.softmax(teacher(batch), -1).detach(), F.softmax(student(batch), -1)
        kl = (p * (p / q).log()).sum(-1).mean()
        kl.backward()
        slope = sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None)
        rates.append(PER_POLYAK * float(kl.detach()) / slope)
    return min(HIGHEST, sum(rates) / len(rates))


@pytest.mark.parametrize(("batch", "passes", "steps"), [(128, 1, 1), (32, 1, 4), (32, 4, 1), (16, 4, 2), (50, 1, 3)])
def test_the_rate_is_that_of_the_images_of_whole_steps(
    batch: int, passes: int, steps: int, folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    """Accumulated batches are one step, of their mean gradient; of small steps some are asked, 128 images in all."""
    system, rates = distilled(folders), Rates()
    run = trainer(
        max_steps=steps, limit_val_batches=0, callbacks=[rates], accumulate_grad_batches=passes, max_epochs=-1
    )
    run.fit(system, images(batch_size=batch, augment="flip"))
    assert len(rates.batches) == steps * passes
    whole = [torch.cat(rates.batches[i * passes : (i + 1) * passes]) for i in range(steps)]
    assert system.beginning.rate == pytest.approx(expected_rate(folders, *whole), rel=1e-4)


def test_what_a_student_knows_of_one_image_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_modules.rates.HIGHEST", math.inf)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    batch, far = torch.randn(1, 1, 2, 2), torch.tensor([[9.0, 0.0, 0.0]])
    same = (batch, network(batch).detach())
    both, other = (rate_for(network, steps, HERE) for steps in ([[same], [(batch, far)]], alone(batch, far)))
    assert 0 < both == pytest.approx(other / 2, rel=1e-4)
    with pytest.warns(UserWarning, match="there is nothing to learn"):
        assert rate_for(network, [[same], [same]], HERE) == 0


def test_every_step_has_its_share_of_the_rate(folders: Folders, trainer: Callable[..., Trainer]) -> None:
    system, rates = distilled(folders), Rates()
    assert system.optimization.lr == "auto"
    trainer(max_steps=8, limit_val_batches=0, callbacks=[rates]).fit(system, images())
    rate = expected_rate(folders, *rates.batches[:4])
    assert rate > 1e-4
    assert system.beginning.rate == pytest.approx(rate, rel=1e-4)
    factor = system.optimization.factor(8)
    assert rates.seen == pytest.approx([rate * factor(step) for step in range(8)], rel=1e-4)


def test_each_fit_chooses_anew(
    folders: Folders, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = distilled(folders)
    trainer(max_steps=1, limit_val_batches=0).fit(system, images())
    first = system.beginning.rate
    monkeypatch.setattr("lightning_modules.beginning.rate_for", lambda *_: 1e-9)
    trainer(max_steps=1, limit_val_batches=0).fit(system, images())
    assert first is not None
    assert first > 1e-6
    assert system.beginning.rate == 1e-9


@pytest.mark.filterwarnings("ignore:the student answers as its teacher does")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_student_that_is_its_teacher_does_not_move(
    precision: str, folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    system = distilled(folders, folders[0])
    before = {name: value.clone() for name, value in system.network.state_dict().items()}
    run = trainer(max_steps=4, limit_val_batches=0, precision=precision)
    run.fit(system, images())
    assert (system.beginning.rate, run.global_step) == (0, 1), "nor goes on to no purpose"
    after = system.network.state_dict()
    assert all(torch.allclose(value, after[name], atol=1e-6) for name, value in before.items())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # as in any resumed run
@pytest.mark.parametrize("earlier", [False, True])
def test_a_resumed_run_goes_on_with_its_rate(
    earlier: bool,
    folders: Folders,
    trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also from a checkpoint of a version that had no such choice, whose rate was a number."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2)
    options = {"callbacks": [saving], "enable_checkpointing": True, "limit_val_batches": 0}
    number = Optimization("adamw", 2e-3, 0.0, schedule="constant", warmup=0.0)
    auto = Optimization("adamw", "auto", 0.0, schedule="constant", warmup=0.0)
    first = distilled(folders, optimization=number if earlier else auto)
    trainer(max_steps=2, **options).fit(first, images())
    path = tmp_path / "step=2.ckpt"
    if earlier:
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["rate"], checkpoint["optimization"]
        torch.save(checkpoint, path)
    resumed, rates = distilled(folders, optimization=auto), Rates()
    monkeypatch.setattr("lightning_modules.beginning.rate_for", lambda *_: pytest.fail("asked again"))
    options["callbacks"] = [saving, rates]
    trainer(max_steps=4, **options).fit(resumed, images(), ckpt_path=path, weights_only=True)
    assert resumed.beginning.rate == first.beginning.rate
    assert not earlier or first.beginning.rate == 2e-3
    assert rates.seen == [first.beginning.rate] * 2


def test_the_rate_changes_nothing_of_the_student(folders: Folders) -> None:
    teacher, student = (from_pretrained(folder).model for folder in folders)
    student.conv_head = nn.Sequential(student.conv_head, nn.Dropout(0.5))  # in evaluation mode when it is asked
    data = open_data("fashion_mnist_mini", Preprocess.of(teacher), train=True)
    batch = torch.stack([data[place][0] for place in range(32)])
    with torch.no_grad():
        target = teacher.eval()(batch)
    student.train()
    state = torch.get_rng_state()
    moments = [buffer.clone() for norm in remembering_norms(student) for buffer in norm.buffers()]
    assert rate_for(student, alone(batch, target), HERE) == pytest.approx(expected_rate(folders, batch), rel=1e-4)
    after = [buffer for norm in remembering_norms(student) for buffer in norm.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in student.modules())


def test_numbers_have_no_distance() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    batch = torch.randn(3, 1, 2, 2)
    assert rate_for(network, alone(batch, 100 * network(batch)), HERE) == OF_NUMBERS


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_start_without_a_finite_kl_is_an_error(value: float) -> None:
    network, batch = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.randn(3, 1, 2, 2)
    target = network(batch).detach()
    with torch.no_grad():
        network[1].bias[0] = value
    with pytest.raises(NonFiniteError, match=r"whose KL to the teacher is (nan|inf) on the first images"):
        rate_for(network, alone(batch, target), HERE)


@pytest.mark.parametrize("slope", [0.0, math.nan])
def test_a_kl_without_a_gradient_is_an_error(slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.tensor(0.1), torch.tensor(slope)
    monkeypatch.setattr("lightning_modules.rates.of_step", lambda *_: found)
    network, batch = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.randn(3, 1, 2, 2)
    with pytest.raises(NonFiniteError, match=r"is 0.1 on the first images, with a gradient of (0|nan); expected"):
        rate_for(network, alone(batch, network(batch)), HERE)


def test_several_ranks_choose_as_one_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slope is that of the mean gradient, along which they step, not the mean of their slopes."""
    monkeypatch.setattr("lightning_modules.rates.HIGHEST", math.inf)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    batch, target = torch.randn(6, 1, 2, 2), torch.randn(6, 3)
    halves = [(batch[part], target[part]) for part in (slice(3), slice(3, None))]
    second = list[Tensor]()

    def kept(tensor: Tensor) -> Tensor:
        second.append(tensor)
        return tensor

    kl_and_slope(network, *halves[1], kept)

    class Ranks(SingleDeviceStrategy):
        """The first of two processes."""

        def __init__(self) -> None:
            super().__init__(torch.device("cpu"))
            self.others = iter(second)

        def reduce(self, tensor: Tensor, *_: object, reduce_op: str) -> Tensor:
            assert reduce_op == "mean"
            return (tensor + next(self.others)) / 2

    together = rate_for(network, alone(*halves[0]), Ranks())
    assert together == pytest.approx(rate_for(network, alone(batch, target), HERE), rel=1e-4)
    assert together > rate_for(network, alone(*halves[0]), HERE)


def test_the_slope_is_that_of_full_precision_in_a_run_of_half(folders: Folders) -> None:
    teacher, student = (from_pretrained(folder).model.eval() for folder in folders)
    batch = torch.randn(8, 1, 28, 28)
    target = teacher(batch).detach()
    whole = kl_and_slope(student, batch, target)
    with torch.autocast("cpu", torch.bfloat16):
        half = kl_and_slope(student, batch, target)
    assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))


def test_the_slope_is_what_a_step_of_signs_gains(folders: Folders) -> None:
    """To first order: the KL falls by the rate times the slope if every weight moves by the rate."""
    teacher, student = (from_pretrained(folder).model.double().eval() for folder in folders)
    batch = torch.randn(16, 1, 28, 28, dtype=torch.float64)
    target = teacher(batch).detach()
    kl, slope = kl_and_slope(student, batch, target)
    loss = distillation_kl(student(batch), target)
    loss.backward()
    assert float(kl) == pytest.approx(float(loss.detach()))
    rate = 1e-3 * float(kl / slope)
    with torch.no_grad():
        for parameter in student.parameters():
            assert parameter.grad is not None
            parameter.sub_(rate * parameter.grad.sign())
    gained = float(kl - kl_and_slope(student, batch, target)[0])
    assert gained == pytest.approx(rate * float(slope), rel=2e-2)


def test_a_wider_network_gets_a_lower_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function as a sum of a hundred weights: a step of signs moves it a hundred times as far."""

    class Split(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.parts = nn.ParameterList(torch.full((3, 4), 0.3 / count) for _ in range(count))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), torch.stack(list(self.parts)).sum(0))

    batch, target = torch.randn(5, 1, 2, 2), torch.randn(5, 3)
    assert rate_for(Split(1), alone(batch, target), HERE) == HIGHEST
    monkeypatch.setattr("lightning_modules.rates.HIGHEST", math.inf)
    one, many = (rate_for(Split(count), alone(batch, target), HERE) for count in (1, 100))
    assert many == pytest.approx(one / 100, rel=1e-4)


def test_frozen_weights_do_not_count(folders: Folders) -> None:
    teacher, student = (from_pretrained(folder).model.eval() for folder in folders)
    batch = torch.randn(8, 1, 28, 28)
    target = teacher(batch).detach()
    whole = kl_and_slope(student, batch, target)[1]
    student.get_classifier().requires_grad_(False)
    rest = kl_and_slope(student, batch, target)[1]
    student.requires_grad_(False).get_classifier().requires_grad_(True)
    assert float(rest + kl_and_slope(student, batch, target)[1]) == pytest.approx(float(whole), rel=1e-4)
    assert all(parameter.grad is None for parameter in student.parameters())
