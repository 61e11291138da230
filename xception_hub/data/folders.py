"""Folders of images: which of them are splits, which are classes, and which files are left out. Ours, because
`datasets` reads the same trees without a question where two readings are possible, and leaves files out silently.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..errors import DataError
from ..images import IMAGE_SUFFIXES
from .split_names import split_of
from .tables import TABLES

# 'splits': the folders with names of splits are splits. Else folders are classes: 'outer': the first ones, whatever is
# in them; 'inner': those that hold images, of which equal names are one class; 'path': the same, each by its path.
# 'metadata': metadata files name images and labels.
READINGS = ('splits', 'outer', 'inner', 'path', 'metadata')
HEIC = {'.heic', '.heif', '.hif'}


@dataclass
class Folder:
    """A folder, and everything below it that is not hidden.

    Attributes:
        path: Path of the folder.
        images: Image files directly in it.
        folders: Folders in it, by name, sorted as strings.
        other: Number of other files directly in it, by suffix and reason.
        tables: Those of them that are tables.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: dict[str, 'Folder'] = field(default_factory=dict)
    other: Counter[tuple[str, str]] = field(default_factory=Counter)
    tables: list[Path] = field(default_factory=list)

    def all(self) -> Iterator['Folder']:
        """The folder and all below it."""
        yield self
        for folder in self.folders.values():
            yield from folder.all()

    def all_images(self) -> list[Path]:
        return [image for folder in self.all() for image in folder.images]

    def all_tables(self) -> list[Path]:
        return [table for folder in self.all() for table in folder.tables]

    def left_out(self) -> Counter[tuple[str, str]]:
        """Files that are no images, or cannot be read, by suffix and reason."""
        return sum((folder.other for folder in self.all()), Counter())

    @property
    def may_be_class(self) -> bool:
        """Whether images are or should be in it: it has some, or files that may be some, or nothing at all."""
        if any(folder.images for folder in self.all()):
            return True
        files = self.left_out()
        return not files or any(suffix in HEIC for suffix, _ in files)


def read_folder(path: Path, seen: frozenset[str] = frozenset()) -> Folder:
    """Lists a folder and all below it. Links to folders are followed, but not back to one above."""
    folder = Folder(path)
    real = os.path.realpath(path)
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.name.startswith('.') or entry.name == '__MACOSX':
            continue
        suffix = Path(entry.name).suffix.lower()
        if entry.is_dir():
            if os.path.realpath(entry.path) not in {*seen, real}:
                folder.folders[entry.name] = read_folder(Path(entry.path), seen | {real})
        elif suffix in IMAGE_SUFFIXES or (not suffix and _is_image(entry.path)):
            folder.images.append(Path(entry.path))
        else:
            reason = 'pip install pillow-heif reads them' if suffix in HEIC else 'no images'
            folder.other[suffix or 'no suffix', reason] += 1
            if suffix in TABLES:
                folder.tables.append(Path(entry.path))
    return folder


def _is_image(path: str) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # of whatever decoder the content led Pillow to
        return False


@dataclass
class Tree:
    """What the folders of a dataset mean.

    Attributes:
        splits: Split -> class -> image files, in order.
        notes: What was left out or assumed, in sentences.
    """

    splits: dict[str, dict[str, list[Path]]]
    notes: list[str]


def understand(root: Folder, named: Collection[str] = (), folders: str | None = None, skip_empty: bool = False) -> Tree:
    """Finds splits and classes.

    Args:
        root: Folder of the dataset.
        named: Names of the splits that the caller wants; a folder's name, or a name of what it means.
        folders: One of `READINGS`; None where only one reading is possible.
        skip_empty: Leave out classes without an image.

    Raises:
        DataError: There are no images, or two readings are possible; the message names the option for each.
    """
    notes = list[str]()
    while len(live := _live(root)) == 1 and not root.images:
        ((name, only),) = live.items()
        if not only.folders or name in named or split_of(name):
            break
        notes.append(f'{only.path} is taken, the only folder of images in {root.path}.')
        root = only
    splits = _splits(root, live, named, folders)
    found: dict[str, dict[str, list[Path]]] = {}
    for split, folder in splits.items():
        if split_of(split) in ('test', 'prediction') and split not in named and not _live(folder) and folder.images:
            notes.append(f'{folder.path} is left aside: its {len(folder.images)} images are in no folders of classes.')
        else:
            found[split] = _classes(folder, folders, skip_empty, notes)
    aside = [name for name in root.folders if name not in splits and splits.get('train') is not root]
    aside += [name for name in root.folders if name not in live and splits.get('train') is root]
    if aside:
        notes.append(f'Left aside in {root.path}: {_names(aside)}.')
    if root.images and splits.get('train') is not root:
        notes.append(f'{len(root.images)} images are left out: they lie in {root.path} itself, beside the splits.')
    if files := listed(root.left_out()):
        notes.append(files)
    return Tree(found, notes)


def _live(folder: Folder) -> dict[str, Folder]:
    return {name: below for name, below in folder.folders.items() if below.may_be_class}


def _splits(root: Folder, live: dict[str, Folder], named: Collection[str], folders: str | None) -> dict[str, Folder]:
    """The folders that are splits, by name; the folder itself as 'train' if there are none."""
    like = {name: folder for name, folder in live.items() if split_of(name)}
    if any(name in live and name != 'train' for name in named):
        chosen = {name: folder for name, folder in live.items() if name in named}
        meant = {split_of(name) for name in named if name not in live}
        return {**chosen, **{name: folder for name, folder in like.items() if split_of(name) in meant}}
    if folders == 'splits' and like:
        return like
    if len(like) == len(live) and any(_live(folder) for folder in like.values()) and folders != 'outer':
        return like
    if like and folders is None:
        raise DataError(
            f'{root.path} holds {_names(live)}, of which {_names(like)} may be splits or classes. If they are splits: '
            f'--folders splits. If all are classes: --folders outer.'
        )
    inside = [sorted(_live(folder)) for folder in live.values()]
    if folders is None and len(live) > 1 and len(inside[0]) > 1 and all(names == inside[0] for names in inside):
        first, second = list(live)[:2]
        raise DataError(
            f'All folders in {root.path} ({_names(live)}) hold the same folders: {_names(inside[0])}. If the former '
            f'are splits: --train-split {first} --validation-split {second}. If they are classes: --folders outer. '
            f'If the latter are classes: --folders inner.'
        )
    return {'train': root}


def _classes(root: Folder, folders: str | None, skip_empty: bool, notes: list[str]) -> dict[str, list[Path]]:
    """The classes of a split, and their images."""
    live = _live(root)
    if not live:
        raise DataError(
            f'{root.path} has no folders, of which there should be one for each class. If a table or the names of the '
            f'files tell the classes, name a table as the dataset, with a column of paths and one of labels.'
        )
    deep = {name: folder for name, folder in live.items() if not folder.images and folder.all_images()}
    inside = [list(_live(folder)) for folder in deep.values()]
    alike = len(deep) == len(live) > 1 and all(len(names) == 1 and names == inside[0] for names in inside)
    if deep and folders in (None, 'splits') and not alike:  # CLASS/images/*.jpg leaves one reading
        name, below = next(iter(deep)), inside[0][0]
        raise DataError(
            f'{root.path} has folders in folders: {name}/{below}. If the class is {name!r}: --folders outer. If it is '
            f'{below!r}: --folders inner. If it is {f"{name}/{below}"!r}: --folders path.'
        )
    found: dict[str, list[Path]] = {}
    if folders in ('inner', 'path'):
        for folder in root.all():
            if folder.images and folder is not root:
                relative = folder.path.relative_to(root.path)
                name = relative.as_posix() if folders == 'path' else relative.name
                found.setdefault(unicodedata.normalize('NFC', name), []).extend(folder.images)
    else:
        empty = {name: folder for name, folder in live.items() if not folder.all_images()}
        if empty and not skip_empty:
            name, folder = next(iter(empty.items()))
            raise DataError(
                f'{len(empty)} classes in {root.path} have no image that can be read: {_names(empty)}. In {name!r}: '
                f'{listed(folder.left_out()) or "no file."} Leave them out with --empty-classes skip.'
            )
        if empty:
            notes.append(f'Left out of {root.path}, without an image: the classes {_names(empty)}.')
        nested = [
            name
            for name, folder in live.items()
            if folder.images and any(map(Folder.all_images, _live(folder).values()))
        ]
        if nested:
            notes.append(f'Images in folders below count for their class in {root.path}: {_names(nested)}.')
        for name, folder in live.items():
            if name not in empty:
                found.setdefault(unicodedata.normalize('NFC', name), []).extend(folder.all_images())
    if root.images:
        notes.append(f'{len(root.images)} images are left out: they lie in {root.path} itself, beside the classes.')
    return {name: found[name] for name in sorted(found)}


def listed(files: Counter[tuple[str, str]]) -> str:
    """The files that are left out, in a sentence; '' for none."""
    if not files:
        return ''
    parts = [f'{count} {suffix} ({reason})' for (suffix, reason), count in sorted(files.items())]
    return f'Left out files: {", ".join(parts)}.'


def _names(names: Iterable[str], most: int = 6) -> str:
    listed = [repr(name) for name in names]
    return ', '.join(listed[:most]) + (f' and {len(listed) - most} more' if len(listed) > most else '')
