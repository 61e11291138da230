"""Folders of images: which of them are splits, which are classes, and which files are left out. Ours, because
`datasets` reads the same trees without a question where two readings are possible, and leaves files out silently.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from PIL import Image

from ..errors import DataError, listed
from ..images import IMAGE_SUFFIXES, walk
from .data_settings import DataSettings
from .known_names import AFFIXES, split_of

HEIC = {'.heic', '.heif', '.hif'}


@dataclass
class Folder:
    """A folder, and everything below it that is not hidden.

    Attributes:
        path: Path of the folder.
        images: Names of the image files directly in it.
        files: Names of the other files directly in it.
        folders: Folders in it, by name, sorted as strings.
    """

    path: str
    images: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    folders: dict[str, 'Folder'] = field(default_factory=dict)

    def all(self) -> Iterator['Folder']:
        """The folder and all below it."""
        yield self
        for folder in self.folders.values():
            yield from folder.all()

    def all_images(self) -> list[str]:
        """The paths of all images."""
        return [f'{folder.path}{os.sep}{name}' for folder in self.all() for name in folder.images]

    def all_files(self) -> list[str]:
        """The paths of all other files."""
        return [os.path.join(folder.path, name) for folder in self.all() for name in folder.files]

    def suffixes(self) -> Counter[str]:
        """The suffixes of all other files, and how often each occurs."""
        return Counter(os.path.splitext(file)[1].lower() for file in self.all_files())

    @property
    def has_images(self) -> bool:
        return any(folder.images for folder in self.all())

    @property
    def live(self) -> dict[str, 'Folder']:
        """The folders in it that may be classes: they have images, files that may be some, or nothing at all."""
        return {
            name: folder
            for name, folder in self.folders.items()
            if folder.has_images or not (suffixes := {*folder.suffixes()}) or suffixes & HEIC
        }

    def left_out(self) -> str:
        """The files that are no images, or cannot be read, in a sentence; '' for none."""
        parts = [
            f'{count} {suffix or "no suffix"} '
            f'({"pip install pillow-heif reads them" if suffix in HEIC else "no images"})'
            for suffix, count in sorted(self.suffixes().items(), key=lambda item: item[0] or 'no suffix')
        ]
        return f'Left out files: {", ".join(parts)}.' if parts else ''


def read_folder(path: str | os.PathLike[str]) -> Folder:
    """Lists a folder and all below it. A file without a suffix is an image if its content is one."""
    tree: dict[str, Folder] = {}
    for place, inside, files in walk(os.fspath(path)):
        folder = tree.setdefault(place, Folder(place))
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            is_image = suffix in IMAGE_SUFFIXES or (not suffix and _is_image(os.path.join(place, name)))
            (folder.images if is_image else folder.files).append(name)
        for name in inside:
            below = os.path.join(place, name)
            folder.folders[name] = tree[below] = Folder(below)
    return tree[os.fspath(path)]


def _is_image(path: str) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # of whatever decoder the content led Pillow to
        return False


Classes = dict[str, list[str]]  # class -> image files, in order


def understand(
    root: Folder, settings: DataSettings, named: Collection[str] = ()
) -> tuple[dict[str, Classes], list[str]]:
    """The images of each split and class, and what was left out or assumed, in sentences.

    The caller may want some splits by the names of their folders, or by what these mean.
    """
    notes = list[str]()
    while (only := _only(root)) and only.folders and not _is_named(only, named):
        notes.append(f'{only.path} is taken, the only folder of images in {root.path}.')
        root = only
    live = root.live
    splits = _splits(root, live, named, settings)
    found: dict[str, Classes] = {}
    for split, folder in splits.items():
        while folder is not root and (only := _only(folder)) and _is_wrapper(only):  # seg_train/seg_train, train/images
            folder = only
        if split_of(split) in ('test', 'prediction') and split not in named and folder.images and not folder.live:
            notes.append(
                f'{folder.path} is left aside: its {len(folder.images)} images are in no folders of classes. To '
                f'validate on a share of the training images: --validation-split "".'
            )
        else:
            found[split] = _classes(folder, settings, notes)
    is_split = 'train' not in splits or splits['train'].path != root.path
    if aside := [name for name in root.folders if name not in (splits if is_split else live)]:
        notes.append(f'Left aside in {root.path}: {listed(map(repr, aside))}.')
    if root.images and is_split:
        notes.append(f'{len(root.images)} images are left out: they lie in {root.path} itself, beside the splits.')
    return found, [*notes, *filter(None, [root.left_out()])]


def _only(folder: Folder) -> Folder | None:
    """The only folder that may hold images, if there is nothing beside it."""
    live = [*folder.live.values()]
    return live[0] if len(live) == 1 and not folder.images else None


def _is_named(folder: Folder, named: Collection[str]) -> bool:
    name = os.path.basename(folder.path)
    return name in named or split_of(name) is not None


def _is_wrapper(folder: Folder) -> bool:
    name = os.path.basename(folder.path)
    return split_of(name) is not None or (name.lower() in AFFIXES and bool(folder.live))


def _splits(root: Folder, live: dict[str, Folder], named: Collection[str], settings: DataSettings) -> dict[str, Folder]:
    """The folders that are splits, by name; the folder itself as 'train' if there are none."""
    folders = settings.folders
    if settings.fold in live and not settings.folds:
        return live
    if any(name in live and name != 'train' for name in named):
        others = {split_of(name) for name in named if name not in live} - {None}
        return {name: folder for name, folder in live.items() if name in named or split_of(name) in others}
    like = {name: folder for name, folder in live.items() if split_of(name)}
    hold_classes = any(folder.live for folder in like.values())
    are_all, meant = len(like) == len(live), {*map(split_of, like)}
    if like and (folders == 'splits' or (are_all and hold_classes and folders != 'outer')):
        rest = replace(root, folders={name: folder for name, folder in root.folders.items() if name not in like})
        return like if are_all or 'train' in meant else {'train': rest, **like}
    if like and folders is None and (hold_classes or are_all or meant & {'test', 'prediction'}):
        raise DataError(
            f'{root.path} has the folders {listed(map(repr, live))}. If {listed(map(repr, like))} are splits: '
            f'--folders splits. If all are classes: --folders outer.'
        )
    inside = [sorted(folder.live) for folder in live.values()]
    if folders is None and len(live) > 1 and len(inside[0]) > 1 and all(names == inside[0] for names in inside):
        first, second = [*live][:2]
        raise DataError(
            f'All folders in {root.path} ({listed(map(repr, live))}) hold the same folders: '
            f'{listed(map(repr, inside[0]))}. If the former are splits: --train-split {first} --validation-split '
            f'{second}. If they are folds: --fold {first}. If they are classes: --folders outer. If the latter are: '
            f'--folders inner.'
        )
    return {'train': root}


def _classes(root: Folder, settings: DataSettings, notes: list[str]) -> Classes:
    """The classes of a split, and their images."""
    live, folders = root.live, settings.folders
    if not live:
        raise DataError(
            f'{root.path} has no folders, of which there should be one for each class. If a table or the names of the '
            f'files hold the classes, name a table as the dataset, with a column of paths and one of labels.'
        )
    deep = [name for name, folder in live.items() if not folder.images and folder.has_images]
    inside = [[*live[name].live] for name in deep]
    alike = len(deep) == len(live) > 1 and all(len(names) == 1 and names == inside[0] for names in inside)
    if deep and folders in (None, 'splits') and not alike:  # CLASS/images/*.jpg leaves one reading
        name, below = deep[0], inside[0][0]
        raise DataError(
            f'{root.path} has folders in folders: {name}/{below}. If the class is {name!r}: --folders outer. If it is '
            f'{below!r}: --folders inner. If it is {f"{name}/{below}"!r}: --folders path.'
        )
    if folders in ('inner', 'path'):
        below_root = {os.path.relpath(folder.path, root.path).replace(os.sep, '/'): folder for folder in root.all()}
        places = [
            (path if folders == 'path' else os.path.basename(path), folder)
            for path, folder in below_root.items()
            if folder.images and folder is not root
        ]
    else:
        empty = [name for name, folder in live.items() if not folder.has_images]
        if empty and settings.empty_classes == 'error':
            raise DataError(
                f'{len(empty)} classes in {root.path} have no image that can be read: {listed(map(repr, empty))}. In '
                f'{empty[0]!r}: {live[empty[0]].left_out() or "no file."} Leave them out with --empty-classes skip.'
            )
        if empty:
            notes.append(f'Left out of {root.path}, without an image: the classes {listed(map(repr, empty))}.')
        nested = [n for n, folder in live.items() if folder.images and any(f.has_images for f in folder.live.values())]
        if nested:
            notes.append(f'Images in folders below count for their class in {root.path}: {listed(map(repr, nested))}.')
        places = [(name, below) for name, folder in live.items() if name not in empty for below in folder.all()]
    if root.images:
        notes.append(f'{len(root.images)} images are left out: they lie in {root.path} itself, beside the classes.')
    found: Classes = {}
    for name, folder in places:  # macOS decomposes accents
        images = [f'{folder.path}{os.sep}{image}' for image in folder.images]
        found.setdefault(unicodedata.normalize('NFC', name), []).extend(images)
    return {name: found[name] for name in sorted(found)}
