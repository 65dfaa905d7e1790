"""A small network that makes images of noise, coarse to fine: a convolution and fresh noise at every octave.

What is fine depends on what is coarse (SinGAN, Shaham et al. 2019), and low frequencies are the strong ones before
anything is learned: in small images nearly as in natural ones (power as frequency^-1.6 at 28 pixels; Field 1987: ^-2),
less so in large ones. Learned with a frozen model as the only judge (generative data-free quantization, Xu et al.
2020), it shares among all images what each would otherwise have to find for itself.

Shape letters: ``n`` images; ``c h w`` channels, height and width of one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hypercompress.alone import drawing

SINGLE = torch.float32  # whatever torch's default is
NOISE = 8  # channels of fresh noise at an octave
# Channels of an octave are so many by the pixels of its longer side, within bounds: were the fine octaves of large
# images as wide as those of small ones, an image would cost more to make than to judge.
PIXELS, NARROWEST, WIDEST = 448, 8, 64
COARSEST = 4  # pixels at which no further octave is begun


class PyramidGenerator(nn.Module):
    """Images from noise of its own.

    Its norms are those of the batch, at every use: what it gives to two images depends on both.

    Args:
        input_size: channels, height and width of an image.
        seed: of the first weights and of all noise.
    """

    def __init__(self, input_size: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        channels, height, width = input_size
        self.sizes = [(height, width)]
        while min(self.sizes[0]) > COARSEST:
            self.sizes.insert(0, (-(-self.sizes[0][0] // 2), -(-self.sizes[0][1] // 2)))
        widths = [min(WIDEST, max(NARROWEST, PIXELS // max(size))) for size in self.sizes]
        with drawing():
            torch.manual_seed(seed)
            self.octaves = nn.ModuleList(
                _octave(before + NOISE, after) for before, after in zip([0, *widths], widths, strict=False)
            )
            self.image = _convolution(widths[-1], channels)
        self.seed = seed
        self._source: torch.Generator | None = None

    def forward(self, images: int) -> Float[Tensor, "n c h w"]:
        """So many images, others at each call."""
        x = self._noise(images, self.sizes[0])
        for place, octave in enumerate(self.octaves):
            if place:
                size = self.sizes[place]
                finer = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
                x = torch.cat([finer, self._noise(images, size)], 1)
            x = octave(x)
        made: Tensor = self.image(x)
        return made

    def _noise(self, images: int, size: tuple[int, int]) -> Tensor:
        device = self.image.weight.device
        if self._source is None:
            self._source = torch.Generator(device).manual_seed(self.seed)
        return torch.randn(images, NOISE, *size, generator=self._source, device=device, dtype=SINGLE)


def _octave(inputs: int, outputs: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs, track_running_stats=False, dtype=SINGLE)
    return nn.Sequential(_convolution(inputs, outputs), norm, nn.LeakyReLU(0.2))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate", dtype=SINGLE)
