"""Finds the image files that a table names: in another folder, without their suffix, with the paths of another machine.

Each way of writing is tried for the paths that are not files as they stand. A path has one file, or the run stops.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import DataError
from ..images import IMAGE_SUFFIXES

SHOWN = 3  # paths in a message


class Files:
    """The image files in some folders, by several spellings of their names.

    Args:
        folders: Folders that paths are relative to.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders

    @cached_property
    def below(self) -> list[tuple[str, Path]]:
        """All image files: the path in their folder, and the whole path."""
        found = []
        for folder in self.folders:
            seen = set()
            for directory, inside, names in os.walk(folder, followlinks=True):
                seen.add(os.path.realpath(directory))
                # a link may lead back to a folder that it is in
                inside[:] = sorted(n for n in inside if os.path.realpath(os.path.join(directory, n)) not in seen)
                for path in (Path(directory, name) for name in sorted(names) if not name.startswith('.')):
                    if path.suffix.lower() in IMAGE_SUFFIXES:
                        found.append((path.relative_to(folder).as_posix(), path))
        return found

    def spelt(self, how: Callable[[str], str]) -> dict[str, list[Path]]:
        """All files by `how` applied to the path in their folder."""
        found: dict[str, list[Path]] = {}
        for relative, path in self.below:
            found.setdefault(how(relative), []).append(path)
        return found

    def at(self, relative: str) -> Path | None:
        """The file of a path.

        Raises:
            DataError: Several folders have one.
        """
        found = [folder / relative for folder in self.folders if (folder / relative).is_file()]
        return _only(found, relative)


def without_suffix(name: str) -> str:
    return os.path.splitext(name)[0]


def last_part(name: str) -> str:
    return name.rpartition('/')[2]


def locate(
    paths: Sequence[str], dataset: str, folders: Sequence[Path], image_folder: Path | None
) -> tuple[list[str], list[str]]:
    """The files that paths of a table mean.

    Args:
        paths: Paths or URLs, as they are written; '' for none.
        dataset: Name of the table, for messages.
        folders: Folders that relative paths may be relative to.
        image_folder: Folder of the images, if the caller named one: then paths of another machine are looked for there.

    Returns:
        For each path the file, or what is written if there is none; and notes on how they were found.

    Raises:
        DataError: No path is that of a file, or one may be several.
    """
    files = Files([image_folder] if image_folder else folders)
    if image_folder and not image_folder.is_dir():
        raise DataError(f'--image-folder {image_folder} is no folder.')
    found: list[str | None] = [path if not path or '://' in path else _as_written(path, files) for path in paths]
    missing = [row for row, path in enumerate(found) if path is None]
    notes = []
    ways: dict[str, Callable[[list[str]], list[Path | None]]] = {
        'with a backslash for each slash': lambda texts: [files.at(_with_slashes(text)) for text in texts],
        'without their suffix': lambda texts: _spelt(texts, files.spelt(without_suffix), str),
        'in other case': lambda texts: _spelt(texts, files.spelt(str.casefold), str.casefold),
    }
    if image_folder:
        ways['with the path of another place'] = lambda texts: _of_another_place(texts, files)
    for way, find in ways.items():
        if missing:
            for row, file in zip(missing, find([paths[row] for row in missing])):
                found[row] = str(file) if file else None
            count = sum(found[row] is not None for row in missing)
            if count:
                notes.append(f'{count} images of {dataset} are written {way}, such as {paths[_first(missing, found)]}.')
            missing = [row for row in missing if found[row] is None]
    if missing and len(missing) == sum(map(bool, paths)):
        raise _none_there([paths[row] for row in missing], dataset, files)
    return [path if path is not None else _whole(paths[row], files) for row, path in enumerate(found)], notes


def _first(missing: list[int], found: list[str | None]) -> int:
    return next(row for row in missing if found[row] is not None)


def _as_written(path: str, files: Files) -> str | None:
    if os.path.isabs(path):
        return path if os.path.isfile(path) else None
    file = files.at(path)
    return str(file) if file else None


def _whole(path: str, files: Files) -> str:
    """A path for messages."""
    return path if os.path.isabs(path) or _is_of_windows(path) else str(files.folders[0] / path)


def _is_of_windows(path: str) -> bool:
    return bool(PureWindowsPath(path).drive)


def _with_slashes(path: str) -> str:
    return path.replace('\\', '/').removeprefix('./')


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(_with_slashes(path)).parts


def _only(found: Sequence[Path], path: str) -> Path | None:
    if len(found) > 1:
        raise DataError(
            f'The path {path!r} may be {" or ".join(map(str, found[:SHOWN]))}. Write it as one of these, or name the '
            f'folder with --image-folder.'
        )
    return found[0] if found else None


def _spelt(paths: list[str], places: Mapping[str, Sequence[Path]], how: Callable[[str], str]) -> list[Path | None]:
    return [_only(places.get(how(_with_slashes(path)), []), path) for path in paths]


def _of_another_place(paths: list[str], files: Files) -> list[Path | None]:
    """Files of paths whose first parts are those of another folder or machine; of each the longest end that is here.

    The same first parts are taken from all paths that begin with them, so that a file which is missing stays missing.
    """
    places = files.spelt(str)
    every = [_parts(path) for path in paths]
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
    looked = ' or '.join(map(str, files.folders))
    text = f'None of the {len(paths)} images that {dataset} names is there, such as {first!r}'
    if os.path.isabs(first) or _is_of_windows(first):
        alike = [_with_slashes(path) for path in paths[:1000] if os.path.isabs(path) == os.path.isabs(first)]
        shared = os.path.commonpath([os.path.dirname(path) for path in alike])
        text += f': their paths begin with {shared or first!r}, which is not here'
    else:
        text += f' in {looked}'
    places = files.spelt(last_part)
    name = last_part(_with_slashes(first))
    candidates = places.get(name) or [
        file for key, found in places.items() if without_suffix(key) == name for file in found
    ]
    if not candidates:
        return DataError(f'{text}. Name the folder of the images with --image-folder.')
    pairs = [(_above(file, _parts(first)), file) for file in candidates]
    folder, file = max(pairs, key=lambda pair: _agreement(pair[0], pair[1], paths))
    return DataError(f'{text}. If {file} is that image: --image-folder {folder}.')


def _above(file: Path, written: tuple[str, ...]) -> Path:
    """The folder above those that a path names, from its end on, as far as they are the file's."""
    folder = file.parent
    for part in reversed(written[:-1]):
        if folder.name != part:
            break
        folder = folder.parent
    return folder


def _agreement(folder: Path, file: Path, paths: Sequence[str]) -> tuple[int, int]:
    """What speaks for a folder: the parts that the first path shares with the file, and the paths that are in it."""
    depth = len(file.relative_to(folder).parts)
    return depth, sum((folder / '/'.join(_parts(path)[-depth:])).is_file() for path in paths[:1000])
