"""Photos, prepared as Keras' loaders prepare them, and as timm does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
from PIL import Image

from ..images import find_photos, open_image
from .preprocessing import Preprocessing

Photo = Path | Image.Image


def photos_in(folder: Path) -> list[Path]:
    """The image files in a folder and below it.

    Raises:
        OSError: There is no such folder, or no image in it.
    """
    if photos := find_photos(folder):
        return photos
    raise OSError(f'{folder} holds no file that ends in .jpg, .png or another suffix of images.')


def photo_batch(photos: Sequence[Photo], size: tuple[int, int]) -> np.ndarray:
    """Photos as images [B, H, W, 3] in [-1, 1], resized as `load_img` does."""
    height, width = size
    resized = [open_image(photo).resize((width, height), Image.Resampling.NEAREST) for photo in photos]
    return np.stack([np.asarray(photo) for photo in resized]) / 127.5 - 1


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
    return np.stack([transform(open_image(photo)).permute(1, 2, 0).numpy() for photo in photos])
