"""What a sampler asks a split for."""

from collections.abc import Iterator
from dataclasses import dataclass

from .labelled import Cell, Split


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
    return (Item(index, cell=cell) for index, cell in split.items())
