"""Photos as batches, for what compares or calibrates on them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import DataError, ImageError, OptimizeError
from ..images import IMAGE_SUFFIXES, open_image, sample_photos
from ..models.build import Transforms

CHECKED_PHOTOS = 4  # on which two engines are compared

Photo = str | os.PathLike[str] | Image.Image


@dataclass(frozen=True)
class Photos:
    """Photos as a model takes them.

    Attributes:
        images: [B, 3, H, W].
        words: What they are, in words.
        left_out: Files that cannot be read, each with the reason.
    """

    images: Tensor
    words: str
    left_out: list[str] = field(default_factory=list)


def read_photos(folder: Path, transforms: Transforms, most: int, least: int = 1) -> Photos:
    """The photos below a folder, or as many of them in even steps.

    Args:
        folder: The folder.
        transforms: Preparation of the images.
        most: Number of photos beyond which some are skipped.
        least: Smallest number of photos that can be read.

    Raises:
        DataError: There is no such folder, or it has too few photos that can be read.
    """
    if not folder.is_dir():
        raise DataError(f'There is no folder {folder}. Name one with at least {least} photos in it.')
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    images, left_out = list[Tensor](), list[str]()
    for file in files[:: max(1, len(files) // most)][:most]:
        try:
            images += _prepared([open_image(file, transforms.min_side)], transforms)
        except ImageError as e:
            left_out.append(f'{file}: {e}')
    if len(images) < least:
        reasons = f' {len(left_out)} cannot be read: {left_out[0]}.' if left_out else ''
        raise DataError(f'{folder} has {len(images)} photos, of {least} at least.{reasons} Put more into it.')
    return Photos(torch.stack(images), f'photos of {folder}', left_out)


def photos_like(example: Tensor, model: nn.Module, photos: Sequence[Photo] | None) -> Photos:
    """Photos as a model takes them, of an example's size; without any, the first images of the example.

    Args:
        example: Images [B, C, H, W].
        model: The model, whose `pretrained_cfg` tells the preparation if it has one.
        photos: Paths or images, of which the first `CHECKED_PHOTOS` count. None for those of a photo that Matplotlib
            brings along, if it is installed and the images are RGB.

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
        raise OptimizeError(f'{photo} cannot be compared on: {e}') from e


def sample_batch(transforms: Transforms) -> Photos:
    """A photo that Matplotlib brings along, whole and in parts.

    Raises:
        DataError: Matplotlib is not installed.
    """
    images = _prepared(sample_photos(), transforms)
    if not images:
        raise DataError('There is no photo to compare on: name a folder of some by --images, or install matplotlib.')
    return Photos(torch.stack(images), 'parts of a photo')


def _prepared(photos: Iterable[Image.Image], transforms: Transforms) -> list[Tensor]:
    transform = transforms.evaluation()
    return [transform(photo) for photo in photos]
