"""Finds the image files that a table names: in another folder, without their suffix, with the paths of another machine.

Each way of writing is tried for the paths that are not files as they stand. A path has one file, or the run stops.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pyarrow
import pyarrow.compute as pc

from ..errors import DataError
from ..images import find_photos

SHOWN = 3  # paths in a message
BATCH = 50_000  # paths that are Python's at a time
Way = Callable[[str], str]


def with_slashes(path: str) -> str:
    return path.replace('\\', '/').removeprefix('./')


def without_suffix(path: str) -> str:
    return os.path.splitext(path)[0]


def last_part(path: str) -> str:
    return path.rpartition('/')[2]


def parts_of(path: str) -> tuple[str, ...]:
    return PurePosixPath(with_slashes(path)).parts


# How paths are written in tables: what is compared of the file's path in its folder, and what of the table's.
WAYS: dict[str, tuple[Way, Way]] = {
    'with a backslash for each slash': (str, str),
    'without their suffix': (without_suffix, str),
    'in other case': (str.casefold, str.casefold),
    'without their folder': (last_part, str),
    'without their folder and suffix': (lambda path: without_suffix(last_part(path)), str),
}


class Files:
    """The image files in some folders.

    Args:
        folders: Folders that paths are relative to.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = folders
        self.places: dict[str, list[tuple[str, frozenset[str]]]] = {}

    @cached_property
    def below(self) -> list[tuple[str, str]]:
        """All image files: the path in their folder, and the whole path."""
        return [
            (file.relative_to(folder).as_posix(), str(file))
            for folder in self.folders
            if os.path.isdir(folder)
            for file in find_photos(folder)
        ]

    def spelt(self, how: Way) -> dict[str, list[str]]:
        """All files by `how` applied to the path in their folder."""
        found: dict[str, list[str]] = {}
        for relative, path in self.below:
            found.setdefault(how(relative), []).append(path)
        return found

    def at(self, path: str | None) -> str | None:
        """The file of a path as it is written, if there is one; a URL, or nothing, as it stands.

        Raises:
            DataError: Several folders have one.
        """
        if not path or '://' in path:
            return path or ''
        above, slash, name = path.removeprefix('./').rpartition('/')
        if above not in self.places:  # each folder is listed once, for a million paths
            named = [above + slash] if slash and os.path.isabs(above + slash) else self.folders
            places = [os.path.join(folder, above, '') for folder in named]
            self.places[above] = [(place, _names_in(place)) for place in places]
        found = [place + name for place, names in self.places[above] if name in names]
        return found[0] if len(found) == 1 else _only(found, path)


def _names_in(place: str) -> frozenset[str]:
    """The names of the files in a folder; none if there is no such folder."""
    with suppress(OSError), os.scandir(place) as entries:
        return frozenset(entry.name for entry in entries if entry.is_file())
    return frozenset()


def locate(
    paths: pyarrow.ChunkedArray, dataset: str, folders: Sequence[str], image_folder: Path | None
) -> tuple[pyarrow.ChunkedArray, list[str]]:
    """The files that paths of a table mean.

    Args:
        paths: Paths or URLs, as they are written; None or '' for none.
        dataset: Name of the table, for messages.
        folders: Folders that relative paths may be relative to.
        image_folder: Folder of the images, if the caller named one: then paths of another machine are looked for there.

    Returns:
        For each path the file, or what is written if there is none; and notes on how they were found.

    Raises:
        DataError: No path is that of a file, or one may be several.
    """
    if image_folder and not image_folder.is_dir():
        raise DataError(f'--image-folder {image_folder} is no folder.')
    files = Files([str(image_folder)] if image_folder else folders)
    parts, missing, written = [], list[int](), 0
    for first in range(0, len(paths), BATCH):
        found = [files.at(path) for path in paths.slice(first, BATCH).to_pylist()]
        missing += [first + row for row, path in enumerate(found) if path is None]
        written += sum(path != '' for path in found)
        parts.append(texts(found))
    whole = pyarrow.chunked_array(parts, pyarrow.string())
    if not missing:
        return whole, []
    names = paths.take(pyarrow.array(missing)).to_pylist()
    places, notes = _otherwise(names, dataset, files, bool(image_folder))
    if written == len(missing) and not any(places):
        raise _none_there(names, dataset, files)
    mask = np.zeros(len(whole), bool)
    mask[missing] = True
    found = [_whole(name, files) if place is None else place for name, place in zip(names, places)]
    return pc.replace_with_mask(whole, mask, texts(found)), notes


def texts(values: Sequence[str | None]) -> pyarrow.Array:
    """A column of texts.

    Raises:
        DataError: A name is not UTF-8.
    """
    try:
        return pyarrow.array(values, pyarrow.string())
    except UnicodeEncodeError as e:
        raise DataError(f'The name of {e.object!a} is not UTF-8, which no table can hold: rename the file.') from e


def _otherwise(paths: list[str], dataset: str, files: Files, elsewhere: bool) -> tuple[list[str | None], list[str]]:
    """The files of paths that are no files as they stand, and how they were found."""
    ways = {way: partial(_spelt, files=files, of_file=one, of_path=other) for way, (one, other) in WAYS.items()}
    if elsewhere:
        ways['with the path of another place'] = partial(_elsewhere, files=files)
    found: list[str | None] = [None] * len(paths)
    notes = []
    for way, find in ways.items():
        missing = [row for row, path in enumerate(found) if path is None]
        for row, file in zip(missing, find([paths[row] for row in missing]) if missing else []):
            found[row] = file
        if here := [row for row in missing if found[row] is not None]:
            notes.append(f'{len(here)} images of {dataset} are written {way}, such as {paths[here[0]]}.')
    return found, notes


def _whole(path: str, files: Files) -> str:
    """A path for messages."""
    return path if os.path.isabs(path) or PureWindowsPath(path).drive else os.path.join(files.folders[0], path)


def _only(found: Sequence[str], path: str) -> str | None:
    if len(found) > 1:
        raise DataError(
            f'The path {path!r} may be {" or ".join(found[:SHOWN])}. Write it as one of these, or name the folder with '
            f'--image-folder.'
        )
    return found[0] if found else None


def _spelt(paths: list[str], files: Files, of_file: Way, of_path: Way) -> list[str | None]:
    places = files.spelt(of_file)
    return [_only(places.get(of_path(with_slashes(path)), []), path) for path in paths]


def _elsewhere(paths: list[str], files: Files) -> list[str | None]:
    """Files of paths whose first parts are those of another folder or machine; of each the longest end that is here.

    The same first parts are taken from all paths that begin with them, so that a file which is missing stays missing.
    """
    places = files.spelt(str)
    every = [parts_of(path) for path in paths]
    cuts = {parts: next((cut for cut in range(1, len(parts)) if '/'.join(parts[cut:]) in places), 0) for parts in every}
    prefixes = sorted({parts[:cut] for parts, cut in cuts.items() if cut}, key=len)
    found = []
    for path, parts in zip(paths, every):
        # the shortest: beside cat/1.jpg, a 5.jpg at the top is not the cow/5.jpg that is missing
        prefix = next((prefix for prefix in prefixes if parts[: len(prefix)] == prefix), None)
        found.append(_only(places.get('/'.join(parts[len(prefix) :]), []), path) if prefix else None)
    return found


def _none_there(paths: list[str], dataset: str, files: Files) -> DataError:
    """What to say when all images are missing: where they were looked for, and where they may be."""
    first = paths[0]
    text = f'None of the {len(paths)} images that {dataset} names is there, such as {first!r}'
    if os.path.isabs(first) or PureWindowsPath(first).drive:
        alike = [with_slashes(path) for path in paths[:1000] if os.path.isabs(path) == os.path.isabs(first)]
        shared = os.path.commonpath([os.path.dirname(path) for path in alike])
        text += f': their paths begin with {shared or first!r}, which is not here'
    else:
        text += f' in {" or ".join(map(str, files.folders))}'
    name = last_part(with_slashes(first))
    here = [file for relative, file in files.below if last_part(relative) == name or
            without_suffix(last_part(relative)) == name]  # fmt: skip
    if not here:
        return DataError(f'{text}. Name the folder of the images with --image-folder.')

    def agreement(pair: tuple[Path, str]) -> tuple[int, int]:
        """The parts that the first path shares with the file, and the paths that are in the folder."""
        depth = len(Path(pair[1]).relative_to(pair[0]).parts)
        return depth, sum((pair[0] / '/'.join(parts_of(path)[-depth:])).is_file() for path in paths[:1000])

    folder, file = max(((_above(Path(file), parts_of(first)), file) for file in here), key=agreement)
    return DataError(f'{text}. If {file} is that image: --image-folder {folder}.')


def _above(file: Path, written: tuple[str, ...]) -> Path:
    """The folder above those that a path names, from its end on, as far as they are the file's."""
    folder = file.parent
    for part in reversed(written[:-1]):
        if folder.name != part:
            break
        folder = folder.parent
    return folder
