"""Batches of photos for comparisons and calibration."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import DataError, ImageError, OptimizeError
from ..images import find_photos, open_image, sample_photos
from ..models.build import Transforms

CHECKED_PHOTOS = 4  # on which two engines are compared

Photo = str | os.PathLike[str] | Image.Image


class Photos(NamedTuple):
    """Photos, prepared for a model.

    Attributes:
        images: [B, 3, H, W].
        kind: Description of the photos.
        left_out: Files that cannot be read, each with the reason.
    """

    images: Tensor
    kind: str
    left_out: Sequence[str] = ()

    @property
    def words(self) -> str:
        """Number and description of the photos."""
        return f'{len(self.images)} {self.kind}'


def read_photos(folder: Path, transforms: Transforms, most: int, least: int = 1) -> Photos:
    """Reads the photos below a folder. If there are too many, it takes `most` of them in even steps.

    Args:
        folder: The folder.
        transforms: Preparation of the images.
        most: Largest number of photos to read.
        least: Smallest number of readable photos.

    Raises:
        DataError: There is no such folder, or it has too few readable photos.
    """
    if not folder.is_dir():
        raise DataError(f'There is no folder {folder}. Name one with at least {least} photos in it.')
    files = find_photos(folder)
    images, left_out = _prepared(
        sorted(files)[:: max(1, len(files) // most)][:most], transforms.open, transforms.evaluation()
    )
    if len(images) < least:
        reasons = f' {len(left_out)} cannot be read: {left_out[0]}.' if left_out else ''
        raise DataError(f'{folder} has {len(images)} photos, but needs at least {least}.{reasons} Add more photos.')
    return Photos(torch.stack(images), f'photos of {folder}', left_out)


def sample_batch(transforms: Transforms) -> Photos:
    """Prepares a photo from Matplotlib, whole and in parts.

    Raises:
        DataError: Matplotlib is not installed.
    """
    if not (photos := sample_photos()):
        raise DataError('There is no photo for the comparison. Name a folder by --images, or install matplotlib.')
    return Photos(torch.stack([*map(transforms.evaluation(), photos)]), 'parts of a photo')


def photos_like(example: Tensor, model: nn.Module, photos: Sequence[Photo] | None) -> Photos:
    """Prepares photos for a model, in the size of an example. Without photos, it returns the first images of it.

    Args:
        example: Images [B, C, H, W].
        model: The model. Its `pretrained_cfg`, if any, sets the preparation.
        photos: Paths or images; the first `CHECKED_PHOTOS` are used. None means parts of a photo from Matplotlib, if
            it is installed and the images are RGB.

    Raises:
        OptimizeError: A photo cannot be read.
    """
    shape = example.shape[1:]
    given: Sequence[Photo] = sample_photos() if photos is None and shape[0] == 3 else photos or ()
    if not given:
        return Photos(example[:CHECKED_PHOTOS], 'images of the example')
    config = timm.data.resolve_data_config({'input_size': tuple(shape)}, model=model)
    images, left_out = _prepared(given[:CHECKED_PHOTOS], open_image, timm.data.create_transform(**config))
    if left_out:
        raise OptimizeError(f'{left_out[0]}. Pass other photos.')
    return Photos(torch.stack(images).to(example), 'photos')


def _prepared(
    photos: Iterable[Any], opened: Callable[[Any], Image.Image], transform: Callable[[Image.Image], Tensor]
) -> tuple[list[Tensor], list[str]]:  # [3, H, W] each
    """Returns the photos that can be read, and the others, each with the reason."""
    images, left_out = list[Tensor](), list[str]()
    for photo in photos:
        try:
            images.append(transform(opened(photo)))
        except ImageError as e:
            left_out.append(f'{photo}: {e}')
    return images, left_out
