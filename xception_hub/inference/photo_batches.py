"""Folders of photos as batches, for what compares or calibrates on them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError, ImageError
from ..images import find_photos, sample_photos
from ..models.build import Transforms


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
    files = sorted(find_photos(folder))
    images, left_out = list[Tensor](), list[str]()
    for file in files[:: max(1, len(files) // most)][:most]:
        try:
            images += _prepared([transforms.open(file)], transforms)
        except ImageError as e:
            left_out.append(f'{file}: {e}')
    if len(images) < least:
        reasons = f' {len(left_out)} cannot be read: {left_out[0]}.' if left_out else ''
        raise DataError(f'{folder} has {len(images)} photos, of {least} at least.{reasons} Put more into it.')
    return Photos(torch.stack(images), f'photos of {folder}', left_out)


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
