"""The single images of a split: in order, each with its file where it comes from a stream, and decoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import ImageError
from ..images import open_image
from .dataset import Cell, Split, content


@dataclass(frozen=True)
class Item:
    """What a sampler asks a dataset for.

    Attributes:
        index: Number of the image in the split.
        epoch: For the augmentation, which differs from epoch to epoch.
        weight: 1, or 0 for a padding image that fills an idle rank.
        cell: The image file, of a stream, which can't be asked for an index.
    """

    index: int
    epoch: int = 0
    weight: float = 1.0
    cell: Cell | None = None


def in_order(split: Split) -> Iterator[Item]:
    """All images of a split; only those of a stream come with their files."""
    if split.streamed:
        return (Item(index, cell=cell) for index, cell in split.cells())
    return (Item(index) for index in range(len(split)))


def cell_of(split: Split, item: Item) -> Cell:
    """The image file that an item stands for."""
    return split.cell(item.index) if item.cell is None else item.cell


def image_of(split: Split, item: Item, min_side: int | None = None) -> Image.Image:
    """Decodes an image of a split; an ImageError names it."""
    cell = cell_of(split, item)
    try:
        path = cell.get('path') or '://'
        local = cell.get('bytes') is None and '://' not in path
        return open_image(Path(path) if local else content(cell), min_side, split.grey_maximum)
    except ImageError as e:
        raise ImageError(f'{split.cell_name(item.index, cell)}: {e}') from e
