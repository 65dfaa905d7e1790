"""Images made from a model alone: noise of the right spectrum, moments that are met, students closer than without."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import hypercompress
from hypercompress import Budget, compress
from hypercompress.data import Preprocess, loader, open_data
from hypercompress.errors import DataError, NonFiniteError
from hypercompress.fidelity import compare
from hypercompress.models import load_model
from hypercompress.running.norms import remembering_norms
from hypercompress.synthetic.image_generator import PyramidGenerator
from hypercompress.synthetic.inversion import (
    BATCH,
    FEWER,
    IMAGES,
    LARGEST,
    LEAST,
    fading_noise,
    learn,
    mismatch,
    synthesize,
    usual_images,
)

TEACHER = Path(hypercompress.__file__).parent / "pretrained" / "fashion_mnist_teacher"


def model_of_moments() -> nn.Module:
    """A small network whose norms remember moments that noise does not have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8))
    for x in torch.randn(20, 32, 3, 16, 16) * 0.3 + torch.tensor([0.5, 0.0, -0.5])[:, None, None]:
        model(x)
    return model.eval()


def test_noise_falls_with_frequency_as_asked() -> None:
    for exponent in (0.0, 1.0, 2.0):
        noise = fading_noise(64, (2, 64, 64), torch.Generator().manual_seed(0), exponent, shared=0.5)
        assert float(noise.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(noise.square().mean()) == pytest.approx(1.0, rel=1e-4)
        first, second = noise.transpose(0, 1).flatten(1)
        assert float(torch.corrcoef(torch.stack([first, second]))[0, 1]) == pytest.approx(0.5, abs=0.1)
        power = torch.fft.rfft2(noise).abs().square().mean((0, 1))[0]  # along one axis
        frequency = torch.arange(2, 30, dtype=torch.float32)
        design = torch.stack([frequency.log(), torch.ones_like(frequency)], 1)
        slope = torch.linalg.lstsq(design, power[2:30].log()[:, None]).solution[0, 0]
        assert slope == pytest.approx(-2 * exponent, abs=0.15)


def test_the_mismatch_is_what_its_formula_says() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0])
    x = torch.randn(4000, 2, 2, 2)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.var((0, 2, 3), correction=0, keepdim=True).sqrt()
    expected = ((1 / 4 + torch.log(torch.tensor(4.0)) ** 2) + 0) / 2  # the second channel agrees
    assert mismatch(norm.eval(), [norm], x) == pytest.approx(float(expected), rel=1e-3)


def test_images_meet_the_moments_and_the_model_is_untouched() -> None:
    model = model_of_moments().train()
    before = copy.deepcopy(model.state_dict())
    noise = torch.cat(synthesize(model, (3, 16, 16), 96, steps=0))
    done: list[int] = []
    batches = synthesize(model, (3, 16, 16), 96, steps=80, progress=lambda _phase, count, _at="": done.append(count))
    assert [len(batch) for batch in batches] == [48, 48]  # no batch is left with a few
    assert done == sorted(done)
    assert done[0] < 2  # of 96: work is told as it goes on
    assert done[-1] == 96
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    norms = remembering_norms(model)
    assert len(norms) == 2
    with torch.no_grad():
        assert mismatch(model, norms, torch.cat(batches)) < 0.05 * mismatch(model, norms, noise)


def test_the_generator_learns_what_all_images_share() -> None:
    """What it makes of noise that it has never seen meets the moments before any image is optimised."""
    model = model_of_moments()
    norms, generator = remembering_norms(model), PyramidGenerator((3, 16, 16))
    passes: list[int] = []
    with torch.no_grad():
        before = mismatch(model, norms, generator(64))
    learn(generator, model, norms, 16, 60, passes.append)
    with torch.no_grad():
        assert mismatch(model, norms, generator(64)) < 0.2 * before
    assert passes == [16] * 60


def test_a_seed_is_an_image_and_another_seed_another() -> None:
    model = model_of_moments()
    first, again, other = (torch.cat(synthesize(model, (3, 16, 16), 8, steps=3, seed=s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_moments_the_images_are_noise() -> None:
    model = timm.create_model("test_vit", pretrained=False)
    assert remembering_norms(model) == []
    (batch,) = synthesize(model, (3, 160, 160), 4)
    assert torch.equal(batch, fading_noise(4, (3, 160, 160), torch.Generator().manual_seed(0)))
    assert remembering_norms(nn.BatchNorm2d(3, track_running_stats=False)) == []


def test_students_of_a_trained_model_are_far_closer_than_from_weights_alone() -> None:
    """On real images that nothing was made from: half of the KL at most, for each generator that needs no data."""
    teacher, _ = load_model(str(TEACHER))
    preprocess = Preprocess.of(teacher)
    images: list[Tensor] = [
        x for x, _ in loader(open_data("fashion_mnist_mini", preprocess, train=False), batch_size=128)
    ]
    batches = synthesize(teacher, preprocess.input_size, 128, steps=60)
    made = compress(teacher, Budget(params=0.3), data=torch.cat(batches).split(16), generator="kfac")
    kl = compare(teacher, made, images).kl
    for generator in ("svd", "prior", "hypernet"):
        blind = compress(teacher, Budget(params=0.3), generator=generator)
        assert kl < 0.5 * compare(teacher, blind, images).kl


def test_usually_fewer_large_images_are_made_and_no_more_than_fit() -> None:
    """By default of noise that stands in, of ``--data noise`` and of ``--data synthetic`` alike."""
    assert [usual_images(size) for size in ((3, 64, 64), (3, 65, 65), (3, 224, 224))] == [IMAGES, FEWER, FEWER]
    count = usual_images((3, 1024, 1024))
    assert count * 3 * 1024**2 <= LARGEST < (count + 1) * 3 * 1024**2
    assert usual_images((3, 8192, 8192)) == LEAST


@pytest.mark.parametrize("arguments", [{"images": 1}, {"steps": -1}])
def test_too_few_images_or_steps(arguments: dict[str, int]) -> None:
    with pytest.raises(DataError, match="expected at least 2 images and no fewer than 0 steps; ask for 1024 and 160"):
        synthesize(model_of_moments(), (3, 16, 16), **arguments)


def test_a_model_that_gives_no_finite_gradient_is_refused() -> None:
    model = model_of_moments()
    with torch.no_grad():
        model[3].weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="pass images of your own"):
        synthesize(model, (3, 16, 16), 4, steps=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_a_precision_makes_the_images_of_a_copy_in_a_whole_one(dtype: torch.dtype) -> None:
    model = model_of_moments().to(dtype)
    (made,), (wanted,) = (synthesize(m, (3, 16, 16), 8, steps=6) for m in (model, copy.deepcopy(model).float()))
    assert made.dtype is dtype
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {dtype}
    assert torch.equal(made, wanted.to(dtype))
    assert wanted.isfinite().all()


def test_norms_that_are_called_by_keyword() -> None:
    class Named(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = layer(input=x)
            return x

    model = model_of_moments()
    by_position, by_name = (synthesize(m, (3, 16, 16), 8, steps=2)[0] for m in (model, Named(*model)))
    assert torch.equal(by_position, by_name)


class Heads(nn.Module):
    """Several outputs, and norms that may be there for training alone."""

    def __init__(self, body: nn.Module, always: bool) -> None:
        super().__init__()
        self.stem, self.body, self.always = nn.Conv2d(3, 3, 1), body, always

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"out": x, "aux": self.body(x)} if self.always or self.training else {"out": x}


def test_norms_that_do_not_run_in_evaluation_are_as_none() -> None:
    """An auxiliary head: of a model in half precision, too, and in training mode, which it keeps."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        model = Heads(model_of_moments(), always=False).to(dtype).train()
        batches = synthesize(model, (3, 16, 16), 96, steps=4)
        assert [len(batch) for batch in batches] == [48, 48]
        noise = fading_noise(96, (3, 16, 16), torch.Generator().manual_seed(0))
        assert torch.equal(torch.cat(batches), noise.to(dtype))
        assert model.training


def test_what_a_model_returns_and_writes_into_its_input_is_nothing_to_its_images() -> None:
    """Only the moments at its norms are read."""

    class Writing(Heads):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x.sub_(0.1))

    class Copying(Heads):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x - 0.1)

    torch.manual_seed(0)
    writing = Writing(model_of_moments(), always=True).eval()
    copying = Copying(model_of_moments(), always=True).eval()
    copying.load_state_dict(writing.state_dict())
    (got,), (wanted,) = (synthesize(model, (3, 16, 16), 8, steps=4) for model in (writing, copying))
    assert torch.equal(got, wanted)
    assert not torch.equal(got, fading_noise(8, (3, 16, 16), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("steps", [0, 4])
def test_torch_s_default_dtype_changes_no_image(steps: int) -> None:
    model = model_of_moments()
    (wanted,) = synthesize(model, (3, 16, 16), 8, steps=steps)
    torch.set_default_dtype(torch.float64)
    try:
        (got,) = synthesize(model, (3, 16, 16), 8, steps=steps)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, wanted)


def test_in_inference_mode_the_images_are_the_same() -> None:
    model = model_of_moments()
    (wanted,) = synthesize(model, (3, 16, 16), 8, steps=4)
    with torch.inference_mode():
        (got,) = synthesize(model, (3, 16, 16), 8, steps=4)
    assert torch.equal(got, wanted)
    assert not got.is_inference()


def test_norms_that_no_gradient_passes_are_as_none() -> None:
    """Of a trunk that is frozen, whose parameters ask for gradients all the same."""

    class Frozen(Heads):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                return super().forward(x)

    (got,) = synthesize(Frozen(model_of_moments(), always=True).eval(), (3, 16, 16), 8, steps=4)
    assert torch.equal(got, fading_noise(8, (3, 16, 16), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("steps", [0, 1])
def test_no_batch_is_a_single_image(steps: int) -> None:
    """It has no variance over images."""
    sizes = [len(batch) for batch in synthesize(model_of_moments(), (3, 8, 8), 4 * BATCH + 1, steps=steps)]
    assert sum(sizes) == 4 * BATCH + 1
    assert max(sizes) - min(sizes) <= 1
