"""Prepares photos for an exported file without torch and timm. An export contains this code as preprocess.py."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from .. import images
from ..images import ImageSource, open_image

FILE = 'preprocess.py'
HEAD = '''\
"""Prepares photos for the model's file as xception_hub does. It needs Python 3.10, NumPy and Pillow 10.1, or later."""
'''
CHANGES = {  # to the text of the module that opens images
    'import io\n': 'import io\nimport math\n',
    'import Iterator\n': 'import Iterator, Mapping\n',
    'import BinaryIO\n': 'import Any, BinaryIO\n',
    '\nfrom .errors import ImageError\n': '\n\nclass ImageError(Exception):\n    """An image cannot be opened."""\n\n',
    'with --grey-maximum': 'as grey_maximum in export.json',
}


def prepare(source: ImageSource, report: Mapping[str, Any]) -> np.ndarray:
    """Prepares an image for the exported file.

    Args:
        source: Path or content of the image; see `open_image`.
        report: Content of export.json.

    Returns:
        [1, 3, H, W] in float32.

    Raises:
        ImageError: The image cannot be opened.
    """
    config = report['preprocessing']
    _, height, width = config['input_size']
    photo = open_image(source, math.ceil(max(height, width) / config['crop_pct']), report.get('grey_maximum'))
    size = [math.floor(side / config['crop_pct']) for side in (width, height)]
    if config['crop_mode'] == 'center':  # the shorter side gets this length
        size = [int(size[0] * side / min(photo.size)) for side in photo.size]
    photo = photo.resize((size[0], size[1]), Image.Resampling[config['interpolation'].upper()])
    left, top = round((photo.width - width) / 2), round((photo.height - height) / 2)
    photo = photo.crop((left, top, left + width, top + height))
    pixels = (np.asarray(photo, np.float32) / 255 - np.float32(config['mean'])) / np.float32(config['std'])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def is_able(config: Mapping[str, Any]) -> bool:
    """Whether `prepare` computes what timm's transform for this data config does."""
    _, height, width = config['input_size']
    return config['crop_pct'] <= 1 and (
        config['crop_mode'] == 'squash' or (config['crop_mode'] == 'center' and height == width)
    )


def code() -> str:
    """Content of preprocess.py: `prepare`, and the module that opens images."""
    opening = inspect.getsource(images).partition('"""\n')[2]
    opening = opening.replace(inspect.getsource(images.sample_photos) + '\n\n', '')
    for ours, exported in CHANGES.items():
        opening = opening.replace(ours, exported)
    return HEAD + opening + '\n\n' + inspect.getsource(prepare)
