"""xception-hub predict photos --model local-dir:finetuned

Classifies images, prepared as in training. It prints a line for each image, or writes a table.
"""

import hashlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from tqdm import tqdm

from ..allocator import keep_freed_memory
from ..data.data_settings import DataSettings
from ..data.folders import read_folder
from ..errors import DataError, SettingsError, exits_with_message, printable, printable_lines
from ..images import IMAGE_SUFFIXES
from ..interrupt import INTERRUPTED
from . import prediction_tables
from .predictor import EAGER, Predictor, digest

if TYPE_CHECKING:
    from ..data.labelled import Split

app = App(help=__doc__, version_flags=[])


class Files:
    """Image files, which are read like a `Split` of a dataset, and without packages that read tables.

    Raises:
        DataError: A name is not UTF-8.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        for path in paths:
            if path != path.encode(errors='replace').decode():
                raise DataError(f'{path!r} is not UTF-8, which no table can hold: rename the file.')

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def files(self) -> str:
        """Digest of the names of the files, with their folders', and of their sizes."""
        found = hashlib.sha256()
        for path in self.paths:
            size = os.path.getsize(path) if os.path.isfile(path) else None
            found.update(f'{"/".join(path.split("/")[-2:])} {size}\n'.encode())
        return found.hexdigest()

    def cell(self, index: int) -> str:
        return self.paths[index]

    def cell_name(self, index: int, cell: str) -> str:
        return cell


def images_in(paths: Sequence[str], settings: DataSettings) -> tuple[list['Files | Split'], list[str]]:
    """Finds the images of files and folders, then those of tables and datasets, with notes on what is left out.

    Args:
        paths: Names of files, folders, tables and datasets.
        settings: How they are read; their `dataset` does not matter.

    Raises:
        DataError: A path does not exist, or there are no images.
    """
    files: list[str] = []
    found, notes = list[Any](), list[str]()
    for text in (name for given in paths for name in _files_like(given)):
        path = Path(text)
        folder = read_folder(path) if path.is_dir() else None
        if folder and folder.has_images:
            files += folder.all_images()
            notes += [f'{path}: {left_out}'] if (left_out := folder.left_out()) else []
        elif path.is_file() and not _is_table(text):
            files.append(text)
        elif path.exists() or has_magic(text) or text.count('/') == 1:  # such as a repository of the Hub, or its clone
            table, labelled = _readers(text)
            if folder and not table.is_saved(path) and not any(map(table.is_table, folder.all_files())):
                notes += [f'{path}: {left_out}'] if (left_out := folder.left_out()) else []
                continue
            images, more = labelled.unlabelled(replace(settings, dataset=text))
            found.append(images)
            notes += more
        else:
            raise DataError(f'There is no {text}.')
    if files:
        found.insert(0, Files(files))
    if not any(len(part) for part in found):
        raise DataError(f'There is no image in {", ".join(paths)}. {" ".join(notes)}'.strip())
    return found, notes


def _files_like(given: str) -> list[str]:
    """Finds the files of a pattern; a pattern of tables, and any other text, stays as it is."""
    found = sorted(glob(given, recursive=True)) if has_magic(given) and not Path(given).exists() else []
    return found if found and not any(map(_is_table, found)) else [given]


def _is_table(text: str) -> bool:
    is_other = os.path.isdir(text) or Path(text).suffix.lower() in IMAGE_SUFFIXES
    return not is_other and _readers(text)[0].is_table(text)


def _readers(text: str) -> tuple[Any, Any]:
    """The modules that read tables and datasets, whose packages photos do without."""
    try:
        from ..data import labelled, table
    except ImportError as e:
        raise DataError(
            f"{text} has no image's name. Tables and datasets need {e.name}: pip install 'xception-hub[finetune]'."
        ) from e
    return table, labelled


def predict(predictor: Predictor, splits: Sequence['Files | Split'], indices: range) -> Iterator[dict[str, Any]]:
    """Yields a row for each image, in order: `file` and the cells of `Predictor.predict`.

    Args:
        predictor: What classifies.
        splits: Images, one split after the other.
        indices: Their numbers in all of the splits.
    """
    names: deque[str] = deque()

    def images() -> Iterator[Any]:
        first = 0
        for split in splits:
            for index in range(max(indices.start - first, 0), min(indices.stop - first, len(split))):
                cell: Any = split.cell(index)
                names.append(split.cell_name(index, cell))
                yield cell
            first += len(split)

    for row in predictor.predict(images()):
        yield dict(file=names.popleft(), **row)


@app.default
@exits_with_message()
def main(
    *paths: str,
    model: str,
    output: Annotated[Path | None, Parameter(alias='-o')] = None,
    top: int = 5,
    threshold: float = 0.5,
    probabilities: Annotated[bool, Parameter(negative='')] = False,
    embed: Annotated[bool, Parameter(negative='')] = False,
    multi_label: bool | None = None,
    image_size: int | None = None,
    image_column: str | None = None,
    image_folder: Path | None = None,
    split: str | None = None,
    grey_maximum: int | None = None,
    batch_size: int = 32,
    shard_size: int = 4096,
    workers: Annotated[int | None, Parameter(alias='--threads')] = None,
    device: str | None = None,
    engine: str = EAGER,
    json_: Annotated[bool, Parameter('--json', negative='')] = False,
) -> None:
    """Classify images. Images that cannot be read are listed; their rows have an error instead of a label.

    Args:
        paths: Images, folders with their subfolders, tables with a column of images, or datasets of the Hub. The last
            two need the extra finetune.
        model: Directory that finetune or convert wrote, or a name for timm.create_model.
        output: Table to write: .csv, .jsonl or .parquet. A directory gets a table in parts, which several processes can
            write together, and which the same command continues after an interruption. By default rows are printed.
        top: Number of most probable classes in the column `top`.
        threshold: In multi-label models, the column `label` lists the classes above this probability.
        probabilities: Write the probabilities of all classes, too, in the order of the model's outputs.
        embed: Write the features before the classifier instead of classes, to .jsonl, .parquet or a directory.
        multi_label: Whether an image can have any number of classes. By default the model's config.json decides.
        image_size: Height and width of the images in pixels. By default the model's own size.
        image_column: Column of a table with the images or their paths. By default it is detected from type, then name.
        image_folder: Folder of the images that a table lists. By default the folder of the table.
        split: Split of the dataset. Needed if it has several.
        grey_maximum: Value of white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16.
        batch_size: Number of images in one step.
        shard_size: Number of images in each part of a table in a directory.
        workers: Number of threads that decode images. By default one per core.
        device: Device of the network: cpu, cuda or mps. By default a GPU, if there is one.
        engine: Engine that runs the network: eager (plain PyTorch), auto (the fastest), or a name such as openvino.
        json_: Print each row as a line of JSON with all columns, as in a .jsonl, instead of text.
    """
    keep_freed_memory()
    rank, processes = (int(os.environ.get(name, default)) for name, default in (('RANK', '0'), ('WORLD_SIZE', '1')))
    in_parts = _is_directory(output, embed, json_, shard_size, processes)
    if not paths:
        raise SettingsError('Name images, a folder, a table or a dataset: xception-hub predict photos --model DIR.')
    given = DataSettings(
        dataset=None, image_column=image_column, image_folder=image_folder, validation_split=split,
        grey_maximum=grey_maximum,
    )  # fmt: skip
    try:
        splits, notes = images_in(paths, given)
        predictor = Predictor(
            model, top, threshold, probabilities, embed, multi_label, image_size, grey_maximum, batch_size, workers,
            device, engine,
        )  # fmt: skip
        for note in notes if rank == 0 else []:
            print(printable_lines(note), file=sys.stderr)
        run = _Run(predictor, splits)
        if output and in_parts:
            run.write_parts(output, shard_size, rank, processes)
        else:
            run.write_table(output, json_)
    except KeyboardInterrupt:
        kept = (
            f'The parts that {output} has are kept: the same command goes on with the others.'
            if in_parts
            else f'{output} is not written. Parts that stay are written to a directory: --output {output.stem}.'
            if output
            else 'The rows above are all. Parts that stay are written to a directory: --output predictions.'
        )
        print(f'\nStopped. {kept}', file=sys.stderr)
        sys.exit(INTERRUPTED)


def _is_directory(output: Path | None, embed: bool, json_: bool, shard_size: int, processes: int) -> bool:
    """Returns whether the output is a table in parts.

    Raises:
        SettingsError: The output does not suit the other options.
    """
    suffix = output.suffix if output else ''
    is_table = suffix in prediction_tables.SUFFIXES
    in_parts = output is not None and not is_table and (not suffix or output.is_dir())
    if output and not in_parts and not is_table:
        raise SettingsError(
            f'The name {output} ends in {suffix!r}. A table must end in one of '
            f'{", ".join(prediction_tables.SUFFIXES)}; a directory must have no suffix.'
        )
    if json_ and output:
        raise SettingsError(f'--json prints the rows that --output {output} writes: leave out one of them.')
    if embed and not json_ and (output is None or suffix == '.csv'):
        raise SettingsError(
            '--embed writes vectors: name an --output that ends in .jsonl or .parquet, or a directory, or pass --json.'
        )
    if shard_size < 1:
        raise SettingsError(f'shard_size is {shard_size}; it has to be 1 or more.')
    if processes > 1 and not in_parts:
        raise SettingsError(f'{processes} processes write a table in parts: name a directory as --output.')
    return in_parts


class _Run:
    """Predicts all images, and reports progress, bad images and speed."""

    def __init__(self, predictor: Predictor, splits: Sequence['Files | Split']) -> None:
        self.predictor, self.splits = predictor, splits
        self.total = sum(map(len, splits))
        self.done = self.bad = 0
        self.start = time.perf_counter()

    def rows(self, indices: range) -> Iterator[dict[str, Any]]:
        for row in predict(self.predictor, self.splits, indices):
            self.done += 1
            if row['error']:
                self.bad += 1
                tqdm.write(printable_lines(f'Bad image: {row["file"]}: {row["error"]}'), file=sys.stderr)
            yield row

    def write_table(self, output: Path | None, as_json: bool) -> None:
        """Writes a table, or prints rows."""
        columns = ['file', *self.predictor.columns]

        def show(row: Mapping[str, Any]) -> None:
            if as_json:
                tqdm.write(prediction_tables.json_line(row, columns), file=sys.stdout)
            elif not row['error']:
                share = '' if row['probability'] is None else f'{row["probability"]:.3f}'
                cells = map(printable, (row['file'], row['label'], share))
                tqdm.write('\t'.join(cells).rstrip(), file=sys.stdout)

        with prediction_tables.table(output, columns) if output else nullcontext(show) as write:
            for row in tqdm(self.rows(range(self.total)), total=self.total, unit='img', disable=None):
                write(row)
        self.report(*([f'Written: {output}'] if output else []))

    def write_parts(self, output: Path, shard_size: int, rank: int, processes: int) -> None:
        """Writes the parts that are missing and that no other process is writing."""
        from .shards import Shards

        files = digest(split.files.encode() for split in self.splits)
        shards = Shards(output, self.total, shard_size, dict(self.predictor.identity(), images_digest=files))
        shards.start()
        missing = shards.missing()
        images = sum(len(shards.images_of(number)) for number in missing)
        with tqdm(total=images, unit='img', disable=None if missing else True) as bar:

            def rows(indices: range) -> Iterator[dict[str, Any]]:
                for row in self.rows(indices):
                    bar.update()
                    yield row

            written = list(shards.write(['file', *self.predictor.columns], rows, rank, processes))
        others = len(shards.missing())
        self.report(
            f'All {len(shards)} parts are there, none is left to write: {output}'
            if not missing
            else f'Parts: {len(written)} written, {len(shards) - len(missing)} there before'
            + (f', {others} left to other processes' if others else '')
            + f': {output}'
        )

    def report(self, *more: str) -> None:
        seconds = time.perf_counter() - self.start
        done = (
            f'{self.done - self.bad} of {self.done} images in {seconds:.1f} s ({self.done / seconds:.1f} img/s), '
            f'{self.bad} bad'
        )
        print('. '.join([*([done] if self.done else []), *more]), file=sys.stderr)
