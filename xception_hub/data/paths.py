"""Finds the image files that a table names: in another folder, without their suffix, with the paths of another machine.

Each way of writing is tried for the paths that are not files as they stand. A path has one file, or the run stops.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

import pyarrow

from ..errors import DataError, listed
from ..images import find_photos

PLACES = 20  # folders that are compared for a message
Way = Callable[[str], str]


def with_slashes(path: str) -> str:
    return path.replace('\\', '/').removeprefix('./')


def without_suffix(path: str) -> str:
    return os.path.splitext(path)[0]


def last_part(path: str) -> str:
    return path.rpartition('/')[2]


# How paths are written in tables: what is compared of the file's path in its folder, and what of the table's.
WAYS: dict[str, tuple[Way, Way]] = {
    'with a backslash for each slash': (str, str),
    'without their suffix': (without_suffix, str),
    'in other case': (str.casefold, str.casefold),
    'without their folder': (last_part, str),
    'without their folder and suffix': (lambda path: without_suffix(last_part(path)), str),
}
ELSEWHERE = 'with the path of another place'


class Files:
    """The image files in some folders, to which paths may be relative."""

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
        """The file of a path as it is written, if there is one; a URL, or nothing, as it stands."""
        if not path or '://' in path:
            return path or ''
        above, slash, name = path.removeprefix('./').rpartition('/')
        if above not in self.places:  # each folder is listed once, for a million paths
            named = [above + slash] if slash and os.path.isabs(above + slash) else self.folders
            places = [os.path.join(folder, above, '') for folder in named]
            self.places[above] = [(place, _names_in(place)) for place in places]
        return _only([place + name for place, names in self.places[above] if name in names], path)


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
    """
    if image_folder and not image_folder.is_dir():
        raise DataError(f'--image-folder {image_folder} is no folder.')
    files = Files([str(image_folder)] if image_folder else folders)
    written = paths.to_pylist()
    found = [files.at(path) for path in written]
    missing = {path: None for path, file in zip(written, found) if file is None}
    if not missing:
        return texts(found), []
    places, notes = _otherwise([*missing], dataset, files, bool(image_folder))
    if not places and not any(found):
        raise _none_there([*missing], dataset, files)
    whole = [places.get(path) or _whole(path, files) if file is None else file for path, file in zip(written, found)]
    return texts(whole), notes


def texts(values: Sequence[str | None]) -> pyarrow.ChunkedArray:
    """A column of texts."""
    try:
        return pyarrow.chunked_array([pyarrow.array(values, pyarrow.string())])
    except UnicodeEncodeError as e:
        raise DataError(f'The name of {e.object!a} is not UTF-8, which no table can hold: rename the file.') from e


def _otherwise(paths: list[str], dataset: str, files: Files, elsewhere: bool) -> tuple[dict[str, str], list[str]]:
    """The files of paths that are no files as they stand, and how they were found."""
    found, notes = dict[str, str](), []
    for way in (*WAYS, *[ELSEWHERE] * elsewhere):
        left = [path for path in paths if path not in found]
        if more := _elsewhere(files, left) if way == ELSEWHERE else _spelt(files, left, *WAYS[way]):
            notes.append(f'{len(more)} images of {dataset} are written {way}, such as {next(iter(more))}.')
            found |= more
    return found, notes


def _whole(path: str, files: Files) -> str:
    """A path for messages."""
    return path if os.path.isabs(path) or PureWindowsPath(path).drive else os.path.join(files.folders[0], path)


def _only(found: Sequence[str], path: str) -> str | None:
    if len(found) > 1:
        raise DataError(
            f'The path {path!r} may be {listed(found, 3)}. Write it as one of these, or name the folder with '
            f'--image-folder.'
        )
    return found[0] if found else None


def _spelt(files: Files, paths: Sequence[str], of_file: Way, of_path: Way) -> dict[str, str]:
    """Files of paths that are written like them."""
    places = files.spelt(of_file)
    found = {path: _only(places.get(of_path(with_slashes(path)), []), path) for path in paths}
    return {path: file for path, file in found.items() if file}


def _elsewhere(files: Files, paths: Sequence[str]) -> dict[str, str]:
    """Files of paths whose first parts are those of another folder or machine.

    The same first parts are taken from all paths that begin with them, so that a file which is missing stays missing:
    the shortest. Beside cat/1.jpg, a 5.jpg at the top is not the cow/5.jpg that is missing.
    """
    places = files.spelt(str)
    every = {path: PurePosixPath(with_slashes(path)).parts for path in paths}
    ends = {parts: [cut for cut in range(len(parts)) if '/'.join(parts[cut:]) in places] for parts in every.values()}
    prefixes = sorted({parts[: cuts[0]] for parts, cuts in ends.items() if cuts}, key=len)
    found = dict[str, str]()
    for path, parts in every.items():
        cut = next((len(prefix) for prefix in prefixes if parts[: len(prefix)] == prefix), len(parts))
        if file := _only(places.get('/'.join(parts[cut:]), []), path):
            found[path] = file
    return found


def _none_there(paths: list[str], dataset: str, files: Files) -> DataError:
    """An error for images that are all missing: where they were looked for, and where they may be."""
    text = f'Cannot find any of the {len(paths)} images of {dataset}, such as {paths[0]!r}, in {listed(files.folders)}.'
    *above, name = PurePosixPath(with_slashes(paths[0])).parts
    best: tuple[tuple[int, int], str, Path] | None = None
    alike = [
        file for relative, file in files.below if name in (last_part(relative), without_suffix(last_part(relative)))
    ]
    for file in alike[:PLACES]:
        folder, depth = Path(file).parent, 0
        while depth < len(above) and folder.name == above[-1 - depth]:
            folder, depth = folder.parent, depth + 1
        score = (depth, len(_elsewhere(Files([str(folder)]), paths[:1000])))
        best = max(best or (score, file, folder), (score, file, folder), key=lambda place: place[0])
    if best is None:
        return DataError(f'{text} Name the folder of the images with --image-folder.')
    return DataError(f'{text} If {best[1]} is that image: --image-folder {best[2]}.')
