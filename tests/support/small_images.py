"""Real images that come with a package: handwritten digits and pieces of a photo, as files and as splits."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import ExifTags, Image
from sklearn.datasets import load_digits, load_sample_images

from xception_hub.data.labelled import Cell, Split

WORDS = ('zero', 'one', 'two', 'three')  # so that the order of names isn't that of digits


@functools.cache
def digits(per_class: int = 10, size: int = 32) -> dict[str, list[Image.Image]]:
    """Real handwritten digits of four classes."""
    data = load_digits()
    return {
        word: [
            Image.fromarray((image * 15.9).astype(np.uint8)).resize((size, size))
            for image in data.images[data.target == number][:per_class]
        ]
        for number, word in enumerate(WORDS)
    }


def save_digits(root: Path, per_class: int = 10) -> Path:
    """A folder for each class."""
    for word, images in digits(per_class).items():
        (root / word).mkdir(parents=True)
        for i, image in enumerate(images):
            image.save(root / word / f'{i}.png')
    return root


@functools.cache
def photo() -> Image.Image:
    """640x427 pixels of a temple in China."""
    return Image.fromarray(load_sample_images().images[0])


def encoded(image: Image.Image, format: str = 'PNG', **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@functools.cache
def odd_images() -> dict[str, bytes]:
    """The photo in files that a plain conversion to RGB turns black, white or sideways, or clips."""
    image = photo().crop((0, 0, 333, 200))
    grey = np.asarray(image.convert('L'), np.uint16)
    transparent = image.copy()
    transparent.putalpha(Image.linear_gradient('L').resize(image.size))
    palette = image.convert('P', palette=Image.Palette.ADAPTIVE)
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    return {
        'RGB': encoded(image),
        'RGBA': encoded(transparent),
        'LA': encoded(transparent.convert('LA')),
        'palette': encoded(palette, 'GIF'),
        'transparent palette': encoded(palette, transparency=5),
        'animation': encoded(palette, 'GIF', save_all=True, append_images=[Image.new('P', image.size)]),
        'one bit': encoded(image.convert('1')),
        '16 bits': encoded(Image.fromarray(grey * 257)),
        '16 bits, dark': encoded(Image.fromarray(grey)),  # whose white is unknown
        '12 bits': encoded(Image.fromarray(grey * 16)),  # whose white is unknown, too
        '32 bits': encoded(Image.fromarray(grey.astype(np.int32) * 257), 'TIFF'),
        '0..1': encoded(Image.fromarray((grey / 255).astype(np.float32)), 'TIFF'),
        'NaN': encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), 'TIFF'),
        'CMYK': encoded(image.convert('CMYK'), 'JPEG'),
        'EXIF': encoded(image, 'JPEG', exif=sideways),
        'large JPEG': encoded(photo().resize((1500, 1001)), 'JPEG'),
        'truncated': encoded(image)[:5000],
        'text': b'text',
    }


def save_pieces(folder: Path, count: int, size: int = 64) -> list[Path]:
    """Pieces of the photo, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        left, top = 7 * i % (640 - size), 11 * i % (427 - size)
        paths.append(folder / f'{i:03}.png')
        photo().crop((left, top, left + size, top + size)).save(paths[-1])
    return paths


def split_of(
    images: Sequence[Path | Cell], labels: Sequence[Any] | None = None, streamed: bool = False, name: str = 'train'
) -> Split:
    """Files, or what stands for them ({} for none), as a split; by default of two classes in turn."""
    cells = [(image or None) if isinstance(image, dict) else {'path': str(image), 'bytes': None} for image in images]
    features = datasets.Features(image=datasets.Image(decode=False))
    source = datasets.Dataset.from_dict(dict(image=cells), features=features)
    numbers = np.array([i % 2 for i in range(len(cells))] if labels is None else labels, np.int64)
    return Split(name, source.to_iterable_dataset() if streamed else source, np.arange(len(cells)), numbers)
