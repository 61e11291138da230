"""Batches of photos for comparisons and calibration."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import DataError, ImageError, OptimizeError
from ..images import find_photos, open_image, sample_photos
from ..models.build import Transforms

CHECKED_PHOTOS = 4  # on which two engines are compared

Photo = str | os.PathLike[str] | Image.Image


@dataclass(frozen=True)
class Photos:
    """Photos, prepared for a model.

    Attributes:
        images: [B, 3, H, W].
        words: Description of the photos.
        left_out: Files that cannot be read, each with the reason.
    """

    images: Tensor
    words: str
    left_out: list[str] = field(default_factory=list)


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
    files = sorted(find_photos(folder))
    images, left_out = list[Tensor](), list[str]()
    for file in files[:: max(1, len(files) // most)][:most]:
        try:
            images += _prepared([transforms.open(file)], transforms)
        except ImageError as e:
            left_out.append(f'{file}: {e}')
    if len(images) < least:
        reasons = f' {len(left_out)} cannot be read: {left_out[0]}.' if left_out else ''
        raise DataError(f'{folder} has {len(images)} photos, but needs at least {least}.{reasons} Add more photos.')
    return Photos(torch.stack(images), f'photos of {folder}', left_out)


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
    opened = [_opened(photo) for photo in (photos or ())[:CHECKED_PHOTOS]]
    if photos is None and shape[0] == 3:
        opened = sample_photos()[:CHECKED_PHOTOS]
    if not opened:
        return Photos(example[:CHECKED_PHOTOS], 'the example')
    config = timm.data.resolve_data_config({'input_size': tuple(shape)}, model=model)
    transform = timm.data.create_transform(**config)
    return Photos(torch.stack([transform(photo) for photo in opened]).to(example.device), f'{len(opened)} photos')


def _opened(photo: Photo) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo.convert('RGB')
    try:
        return open_image(Path(photo))
    except ImageError as e:
        raise OptimizeError(f'{photo} cannot be read: {e} Pass other photos.') from e


def sample_batch(transforms: Transforms) -> Photos:
    """Prepares a photo from Matplotlib, whole and in parts.

    Raises:
        DataError: Matplotlib is not installed.
    """
    images = _prepared(sample_photos(), transforms)
    if not images:
        raise DataError('There is no photo for the comparison. Name a folder by --images, or install matplotlib.')
    return Photos(torch.stack(images), 'parts of a photo')


def _prepared(photos: Iterable[Image.Image], transforms: Transforms) -> list[Tensor]:  # [3, H, W] each
    transform = transforms.evaluation()
    return [transform(photo) for photo in photos]
