"""Rendered characters: Latin, Greek, Cyrillic and others from the typefaces that matplotlib ships (DejaVu, STIX).

A rendered stand-in for Omniglot (Lake et al. 2015, Science 350:1332): many classes with few images each, for learning
over tasks. The images are made on the spot, and are the same wherever the fonts are.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hypercompress.data.embedded import ArrayImages
from hypercompress.data.images import ImageSource

FACES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
TRAIN_STYLES = {"DejaVuSans": ("", "-Bold", "-Oblique"), "DejaVuSansMono": ("", "-Bold"), "DejaVuSerif": ("", "-Bold")}
TRAIN_FONTS = tuple(face + style for face in FACES for style in TRAIN_STYLES[face])
TEST_FONTS = ("DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic")
BLOCKS = ((0x30, 0x3A), (0x41, 0x5B), (0x61, 0x7B), (0x391, 0x3CA), (0x410, 0x450))  # digits, Latin, Greek, Cyrillic
DRAWN = 4  # images of a character in a typeface
SIDE = 32  # pixels
POINTS = 22
TURN, STRETCH, SHIFT = math.radians(12), 0.15, 2.0  # the most that an image is turned, stretched and moved (pixels)
ALIKE = 0.15  # difference of two characters as a share of the larger one's ink, under which they are one class


def glyphs(train: bool) -> tuple[ImageSource, Sequence[str]]:
    """White characters on black, 32 x 32, grey; the training images and the others have no typeface in common.

    Characters that look alike in the first typeface (Latin A, Greek Alpha) are one class, named by the first.
    """
    characters = _different([chr(code) for first, end in BLOCKS for code in range(first, end) if chr(code).isalnum()])
    rng = np.random.default_rng(0 if train else 1)
    images, labels = [], []
    for label, character in enumerate(characters):
        for name in TRAIN_FONTS if train else TEST_FONTS:
            upright = _draw(character, _font(name))
            images += [_moved(upright, rng) for _ in range(DRAWN)]
            labels += [label] * DRAWN
    return ArrayImages(np.stack(images), np.array(labels)), characters


def _font(name: str) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), POINTS)


def _draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """In the middle of the line: the height above the base line tells some characters apart."""
    image = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(image).text((SIDE / 2, SIDE / 2), character, fill=255, font=font, anchor="mm")
    return image


def _moved(image: Image.Image, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Turned, stretched and shifted at random about the middle."""
    angle, shift = rng.uniform(-TURN, TURN), rng.uniform(-SHIFT, SHIFT, 2)
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]]) * (1 + rng.uniform(-STRETCH, STRETCH, 2))
    middle = np.full(2, SIDE / 2)
    offset = middle - turn @ (middle + shift)
    matrix = (*turn[0], offset[0], *turn[1], offset[1])
    return np.asarray(image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _different(characters: Sequence[str]) -> list[str]:
    font, kept = _font(TRAIN_FONTS[0]), dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]()
    for character in characters:
        image = np.asarray(_draw(character, font)) / 255
        if all(np.abs(image - other).sum() >= ALIKE * max(image.sum(), other.sum()) for other in kept.values()):
            kept[character] = image
    return list(kept)
