"""Photos, prepared as Keras' loaders prepare them, and whether timm's transform of a directory does the same."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
from PIL import Image

from ..images import IMAGE_SUFFIXES, open_image
from .preprocessing import Preprocessing

Photo = Path | Image.Image


def find_photos(folder: Path) -> list[Path]:
    """The image files of a folder, by name.

    Raises:
        OSError: There is no such folder, or no image in it.
    """
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not photos:
        raise OSError(f'{folder} holds no file that ends in .jpg, .png or another suffix of images.')
    return photos


def open_photos(photos: Sequence[Photo]) -> list[Image.Image]:
    """Decoded, upright, in RGB."""
    return [open_image(photo) for photo in photos]


def photo_batch(photos: Sequence[Photo], size: tuple[int, int]) -> np.ndarray:
    """Photos as images [B, H, W, 3] in [-1, 1], resized as `load_img` does."""
    return np.stack([_resized(photo, size, 'nearest') for photo in open_photos(photos)]) / 127.5 - 1


def keras_batch(preprocessing: Preprocessing, photos: Sequence[Photo]) -> np.ndarray | None:
    """Photos [B, H, W, 3] as the model saw its training images; None without photos."""
    if not photos:
        return None
    mean, std = preprocessing.mean_and_std()
    return ((photo_batch(photos, preprocessing.image_size) + 1) / 2 - mean) / std


def timm_batch(network: Any, photos: Sequence[Photo]) -> np.ndarray | None:
    """Photos [B, H, W, 3] as timm prepares them for a network; None without photos."""
    if not photos:
        return None
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    return np.stack([transform(photo).permute(1, 2, 0).numpy() for photo in open_photos(photos)])


def _resized(photo: Image.Image, size: tuple[int, int], interpolation: str) -> np.ndarray:  # [height, width, 3]
    height, width = size
    return np.asarray(photo.resize((width, height), Image.Resampling[interpolation.upper()]))


def compare_pixels(model: Any, declared: Preprocessing, photos: Sequence[Photo]) -> float:
    """What timm's transform of a model makes of photos, against what was declared of its training.

    Args:
        model: Whose pretrained cfg says how timm prepares its images.
        declared: How Keras prepared them.
        photos: Photos to compare on.

    Returns:
        L2 norm of the difference, relative to that of Keras' images; infinite if even the size differs.
    """
    mean, std = declared.mean_and_std()
    expected = (np.stack([_prepared(photo, declared) for photo in open_photos(photos)]) / 255 - mean) / std
    found = timm_batch(model, photos)
    if found is None or found.shape != expected.shape:
        return math.inf
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _prepared(photo: Image.Image, declared: Preprocessing) -> np.ndarray:
    """A photo [H, W, 3] in 0..255, resized and cropped."""
    height, width = declared.image_size
    if declared.crop_mode == 'squash':
        return _resized(photo, (height, width), declared.interpolation)
    # the shorter side to size / crop_pct, then the middle
    least = math.floor(height / declared.crop_pct), math.floor(width / declared.crop_pct)
    scale = max(least[0] / photo.height, least[1] / photo.width)
    pixels = _resized(photo, (int(photo.height * scale), int(photo.width * scale)), declared.interpolation)
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]
