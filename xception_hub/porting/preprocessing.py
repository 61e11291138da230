"""How images were prepared for a Keras model, in its terms and in timm's; and photos that are prepared so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
from PIL import Image

from ..images import find_photos, open_image

Photo = Path | Image.Image
Rescaling = tuple[float | tuple[float, ...], float | tuple[float, ...]]

# Keras' name of an input range -> scale and offset that make it of pixels in 0..255.
INPUT_RANGES: dict[str, tuple[float, float]] = {
    'tf': (1 / 127.5, -1.0),  # -1..1, keras.applications.xception.preprocess_input
    'unit': (1 / 255, 0.0),  # 0..1
    'raw': (1.0, 0.0),  # 0..255
}


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared when the model was trained, which its file mostly doesn't say.

    Attributes:
        input_range: A key of `INPUT_RANGES`: what the Keras model takes.
        image_size: Height and width in pixels.
        interpolation: timm's name of the resampling.
        crop_pct: Share of the resized image's sides that is kept.
        crop_mode: timm's: 'squash' resizes without regard to the aspect ratio, as Keras does; 'center' keeps it.
        rescaling: Scale and offset that the Keras model, or its preprocessor, itself applies to that range; each is
            one number, or one for each channel.
    """

    input_range: str
    image_size: tuple[int, int]
    interpolation: str
    crop_pct: float = 1.0
    crop_mode: str = 'squash'
    rescaling: Rescaling = (1.0, 0.0)

    def mean_and_std(self, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel for timm, whose images are in 0..1, with which the network gets what
        Keras' Xception gets."""
        scale, offset = INPUT_RANGES[self.input_range]
        means, deviations = [], []
        for factor, summand in zip(*(_for_each(value, channels) for value in self.rescaling)):
            std = 1 / (255 * scale * factor)
            means.append(float(f'{-(offset * factor + summand) * std:.12g}') + 0.0)
            deviations.append(float(f'{std:.12g}'))
        return tuple(means), tuple(deviations)

    def pretrained_cfg(self, channels: int) -> dict[str, Any]:
        """The fields of timm's pretrained cfg."""
        mean, std = self.mean_and_std(channels)
        height, width = self.image_size
        return dict(
            input_size=(channels, height, width),
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=mean,
            std=std,
            pool_size=None,
            test_input_size=None,
            license=None,
            origin_url=None,
        )


def _for_each(value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * channels


def photos_in(folder: Path) -> list[Path]:
    """The image files in a folder and below it.

    Raises:
        OSError: There is no such folder, or no image in it.
    """
    if photos := find_photos(folder):
        return photos
    raise OSError(f'{folder} holds no file that ends in .jpg, .png or another suffix of images.')


def photo_batch(photos: Sequence[Photo], size: tuple[int, int]) -> np.ndarray:
    """Photos as images [B, H, W, 3] in [-1, 1], resized to a height and width as `load_img` does."""
    height, width = size
    resized = [open_image(photo).resize((width, height), Image.Resampling.NEAREST) for photo in photos]
    return np.stack([np.asarray(photo) for photo in resized]) / 127.5 - 1


def prepared_batch(photos: Sequence[Photo], pretrained_cfg: Mapping[str, Any]) -> np.ndarray | None:
    """Photos as images [B, H, W, 3], as timm prepares them for a network; None without photos."""
    if not photos:
        return None
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg))
    return np.stack([transform(open_image(photo)).permute(1, 2, 0).numpy() for photo in photos])
