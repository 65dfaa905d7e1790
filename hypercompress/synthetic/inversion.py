"""Images made from the model alone, to calibrate with where there are no others.

Model inversion: images are optimised until the moments that they cause at every BatchNorm are those that the model
remembers of its training images (ZeroQ, Cai et al. 2020, eq. 2; DeepInversion, Yin et al. 2020, eq. 4). First a small
generator learns it for all images (Xu et al. 2020), then each batch of what it makes is optimised by itself. They look
like nothing, yet what curvature they give is close to that of real images (LOG.md). A model without such moments, a
plain transformer for one, gets 1/f noise, whose spectrum is that of natural images (Field 1987).

Shape letters: ``n`` images; ``c h w`` channels, height and width of one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hypercompress.errors import DataError, NonFiniteError
from hypercompress.running.calling import (
    Progress,
    device_of,
    evaluating,
    first_argument,
    frozen,
    placed,
    precision,
    single_,
)
from hypercompress.running.copying import copy_of
from hypercompress.running.hooks import hooked
from hypercompress.running.norms import remembering_norms
from hypercompress.synthetic.image_generator import SINGLE, PyramidGenerator

SMALL = 64 * 64  # pixels up to which as many images are made as are read of real ones
IMAGES = 1024
FEWER = 256  # of larger ones: each is more samples to a convolution, and takes longer
LARGEST, LEAST = 2**26, 8  # elements of all that are made, 256 MiB, and images, however large
BATCH = 64  # images whose moments are matched together
STEPS = 160  # of the generator
SHARE = 2  # of these steps one in so many is taken for each batch that it made
LEARNING_RATE = 3e-3  # of Adam, the generator's
RATE = 0.1  # of Adam, of an image, whose deviation is about 1
FADING = 1.0  # exponent of the noise's amplitude over frequency
SHARED = 0.9  # of the noise's variance, the part that all colours share, as they do in photographs


@torch.inference_mode(False)  # it learns
def synthesize(
    model: nn.Module,
    input_size: Sequence[int],
    images: int | None = None,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Float[Tensor, "n c h w"]]:
    """Batches of images, as `compress` takes them for data.

    Args:
        model: not modified; its BatchNorms' running moments are read, and nothing of what it returns. Without any that
            run, and that gradients pass, the images are 1/f noise. They are in its own precision; of a model in half
            precision a copy in single precision is asked.
        input_size: channels, height and width of an image.
        images: how many, at least 2; ``None``: `usual_images`.
        steps: of the generator, and half as many of each batch that it made; 0: 1/f noise.
        seed: of the noise.
        progress: called with ``invert`` and the number of images that the work done so far is worth.

    Raises:
        DataError: fewer than two images. NonFiniteError: the optimisation diverged.

    Example:
        >>> compress(model, Budget(params=0.5), data=synthesize(model, (3, 224, 224)))  # doctest: +SKIP
    """
    images = usual_images(input_size) if images is None else images
    if images < 2 or steps < 0:
        raise DataError(
            f"received {images} images and {steps} steps; expected at least 2 images and no fewer than 0 steps; ask "
            f"for {usual_images(input_size)} and {STEPS}"
        )
    own, parts = precision(model), math.ceil(images / BATCH)
    norms = remembering_norms(model) if steps else []
    if norms and own.itemsize < SINGLE.itemsize:
        model = copy_of(model)
        single_(model)
        norms = remembering_norms(model)
    if not _reached(model, norms, input_size):
        noise = fading_noise(images, input_size, torch.Generator().manual_seed(seed))
        return list(noise.to(device_of(model), own).tensor_split(parts))
    sizes = [len(part) for part in torch.arange(images).tensor_split(parts)]  # none of a single one
    polish = max(1, steps // SHARE)
    whole, spent = passes_of(images, steps), 0

    def done(passes: int) -> None:
        nonlocal spent
        before, spent = spent, spent + passes
        if progress is not None and images * spent // whole > images * before // whole:
            progress("invert", images * spent // whole)

    generator = PyramidGenerator(input_size, seed).to(device_of(model))
    with evaluating(model), frozen(model):
        learn(generator, model, norms, sizes[0], steps, done)
        with torch.no_grad():
            starts = [generator(size) for size in sizes]
        return [invert(model, norms, start, polish, done).to(own) for start in starts]


def passes_of(images: int, steps: int = STEPS) -> int:
    """Images that `synthesize` passes forward and back where the model has BatchNorms."""
    return steps * math.ceil(images / math.ceil(images / BATCH)) + max(1, steps // SHARE) * images


def usual_images(input_size: Sequence[int]) -> int:
    """How many images are made of this size if nobody says, within memory."""
    usual = IMAGES if math.prod(input_size[1:]) <= SMALL else FEWER
    return min(usual, max(LEAST, LARGEST // math.prod(input_size)))


def fading_noise(
    images: int,
    input_size: Sequence[int],
    generator: torch.Generator,
    exponent: float = FADING,
    shared: float = SHARED,
) -> Float[Tensor, "n c h w"]:
    """Gaussian noise whose amplitude falls as 1 / frequency^exponent, of mean 0 and deviation 1 as prepared images are.

    Args:
        exponent: 0: white noise.
        shared: share of the variance that all channels have in common.
    """
    channels, height, width = input_size
    white = torch.randn(images, channels, height, width, generator=generator, dtype=SINGLE)
    if channels > 1 and shared > 0:
        common = torch.randn(images, 1, height, width, generator=generator, dtype=SINGLE)
        white = shared**0.5 * common + (1 - shared) ** 0.5 * white
    rows, columns = torch.fft.fftfreq(height, dtype=SINGLE)[:, None], torch.fft.rfftfreq(width, dtype=SINGLE)[None]
    frequency = (rows**2 + columns**2).sqrt()
    frequency[0, 0] = 1 / max(height, width)  # the mean of an image varies as its slowest wave does
    noise: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) / frequency**exponent, s=(height, width))
    return (noise - noise.mean()) / noise.std(correction=0)


def learn(
    generator: PyramidGenerator,
    model: nn.Module,
    norms: Sequence[nn.Module],
    images: int,
    steps: int,
    done: Callable[[int], None],
) -> None:
    """Train the generator on the `mismatch` of new images at each step: Adam, with a cosine schedule.

    Args:
        images: of a step.
        done: told the passes of each step.
    """
    weights = list(generator.parameters())
    adam = torch.optim.Adam(weights, lr=LEARNING_RATE, betas=(0.9, 0.99))
    _descend(adam, weights, model, norms, lambda: generator(images), steps, done)


def invert(
    model: nn.Module,
    norms: Sequence[nn.Module],
    start: Float[Tensor, "n c h w"],
    steps: int,
    done: Callable[[int], None],
) -> Float[Tensor, "n c h w"]:
    """``start`` after so many steps of Adam on the `mismatch`, with a cosine schedule. Only images get gradients.

    Args:
        done: told the passes of each step.

    Raises:
        NonFiniteError: it diverged.
    """
    images = placed(start, model).clone().requires_grad_()
    _descend(torch.optim.Adam([images], lr=RATE), [images], model, norms, lambda: images, steps, done)
    if not images.detach().isfinite().all():
        raise NonFiniteError(
            "received a model whose gradients are not finite on images made from it; expected finite weights and "
            "moments; pass images of your own"
        )
    return images.detach()


def _descend(
    adam: torch.optim.Adam,
    weights: Sequence[Tensor],
    model: nn.Module,
    norms: Sequence[nn.Module],
    make: Callable[[], Tensor],
    steps: int,
    done: Callable[[int], None],
) -> None:
    """Steps on the `mismatch` of what ``make`` makes of the weights; nothing else gets gradients."""
    dtype = precision(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        with torch.enable_grad():
            made = make().to(dtype)
            loss = mismatch(model, norms, made)
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope
        adam.step()
        schedule.step()
        done(len(made))


def mismatch(model: nn.Module, norms: Sequence[nn.Module], images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """How far the moments at the norms are from those remembered: mean over norms and channels of the squared distances
    of the means, in deviations, and of the logarithms of the variances. 0 where all agree.
    """
    with _moments(norms) as found:
        model(images.clone())  # a model may write into what it reads
    return torch.stack(found).mean()


def _reached(model: nn.Module, norms: Sequence[nn.Module], input_size: Sequence[int]) -> bool:
    """Whether an image comes to any of the norms, and a gradient back: to that of a head for training alone, or of a
    trunk that runs under ``torch.no_grad``, none does.
    """
    if not norms:
        return False
    image = placed(torch.zeros(2, *input_size), model).requires_grad_()
    with evaluating(model), frozen(model), _moments(norms) as found, torch.enable_grad():
        model(image.clone())  # a model may write into what it reads
    return any(distance.requires_grad for distance in found)


@contextmanager
def _moments(norms: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The distance at each call of a norm inside the block."""
    found: list[Tensor] = []

    def note(norm: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        x = first_argument(args, named)
        others = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x, others, correction=0)
        known = norm.running_var + norm.eps
        apart = (mean - norm.running_mean).square() / known
        found.append((apart + ((variance + norm.eps) / known).log().square()).mean())

    with hooked(norm.register_forward_pre_hook(note, with_kwargs=True) for norm in norms):
        yield found
