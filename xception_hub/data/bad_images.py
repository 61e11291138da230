"""Every image of a split looked at once, before anything is trained on: which can't be used, and which occur twice."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..errors import ImageError
from ..images import open_image
from .labelled import Data, Item, Split, content

SHOWN = 3  # copies in a message


@dataclass(frozen=True)
class BadImage:
    """An image that can't be used.

    Attributes:
        index: Number of the image in its split.
        name: Its path, or its row.
        reason: Reason, as `images.open_image` gives it.
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What was found, by index: the sha256 of each file, and of its pixels; empty where there are none."""

    bad: list[BadImage]
    digests: dict[int, bytes]
    pixels: dict[int, bytes]


class _Files(Dataset):
    """The sha256 of each image's file, and why an image cannot be used."""

    def __init__(self, split: Split, min_side: int | None, decoded: bool) -> None:
        self.split = split
        self.min_side = min_side
        self.decoded = decoded

    def __getitem__(self, item: Item) -> tuple[int, bytes, bytes, BadImage | None]:
        index, cell = item.index, self.split.cell(item.index) if item.cell is None else item.cell
        digest = pixels = b''
        try:
            file = content(cell)
            digest = hashlib.sha256(file).digest()
            if self.decoded:
                image = open_image(file, self.min_side, self.split.grey_maximum)
                pixels = hashlib.sha256(b'%d ' % image.width + image.tobytes()).digest()
        except ImageError as e:
            return index, digest, pixels, BadImage(index, self.split.cell_name(index, cell), str(e))
        return index, digest, pixels, None


def scan(
    split: Split,
    min_side: int | None = None,
    *,
    workers: int = 0,
    processes: int = 1,
    rank: int = 0,
    decoded: bool = True,
    step: Callable[[], Any] = lambda: None,
) -> Scan:
    """Decodes every image of a split completely.

    Args:
        split: The split to scan.
        min_side: Shorter side in pixels, as in `images.open_image`.
        workers: Processes that decode; 0 for none but this one.
        processes: Number of processes among which the images are dealt.
        rank: Whose share this is.
        decoded: False to read the files only.
        step: Called after each image.
    """
    items = (item for item in split.items() if item.index % processes == rank)
    results: Iterator[tuple[int, bytes, bytes, BadImage | None]] = iter(
        DataLoader(_Files(split, min_side, decoded), sampler=items, batch_size=None, num_workers=workers)
    )
    found = Scan([], {}, {})
    for index, digest, pixels, bad in results:
        found.digests[index], found.pixels[index] = digest, pixels
        if bad:
            found.bad.append(bad)
        step()
    return found


def digests(split: Split, workers: int = 0) -> list[bytes]:
    """The sha256 of each image file.

    Raises:
        ImageError: One can't be read; the message names it.
    """
    found = scan(split, workers=workers, decoded=False)
    if found.bad:
        raise ImageError(f'{found.bad[0].name}: {found.bad[0].reason}')
    return [found.digests[index] for index in range(len(split))]


def copies(data: Data) -> list[str]:
    """Sentences on images that are in both splits, or under two labels: the same pixels, whatever the files are."""
    places: dict[bytes, list[tuple[Split, int]]] = {}
    for split in (data.train, data.validation):
        for index, pixels in enumerate(split.pixels):
            if pixels:
                places.setdefault(pixels, []).append((split, index))
    several = [found for found in places.values() if len(found) > 1]
    both = [found for found in several if len({split is data.train for split, _ in found}) > 1]
    unlike = [found for found in several if len({split.labels[index].tobytes() for split, index in found}) > 1]
    return [
        f'{len(found)} images are {what}: {"; ".join(map(_named, found[:SHOWN]))}{"; ..." if found[SHOWN:] else ""}.'
        for found, what in (
            (both, 'in the training and in the validation split, so that the figures will be better than the model is'),
            (unlike, 'there several times with different labels'),
        )
        if found
    ]


def _named(places: list[tuple[Split, int]]) -> str:
    return ' = '.join(
        split.cell_name(index, {} if split.streamed else split.cell(index)) for split, index in places[:2]
    )
