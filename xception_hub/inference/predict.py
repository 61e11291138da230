"""xception-hub predict photos --model local-dir:finetuned

The classes of images, as the model's own report judges them: a row for each image, on the screen or in a table.
"""

import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from PIL import Image
from tqdm import tqdm

from ..allocator import keep_freed_memory
from ..data.dataset import Split, files_of, unlabelled
from ..data.folders import read_folder
from ..data.items import Item, cell_of, image_of
from ..data.reading import is_saved
from ..data.tables import TABLES
from ..errors import DataError, ImageError, SettingsError, exits_with_message, printable, printable_lines
from . import prediction_tables
from .predictor import EAGER, Predictor, digest
from .shards import Shards

app = App(help=__doc__, version_flags=[])


def images_in(
    paths: Sequence[str], image_column: str | None, split: str | None, image_folder: Path | None
) -> tuple[list[Split], list[str]]:
    """The images of files and folders, then those of tables and datasets, and what was left out.

    Raises:
        DataError: There is no such file, or it holds no images.
    """
    files: list[str] = []
    found, notes = list[Split](), list[str]()

    def add(images: Split, more: list[str]) -> None:
        found.append(images)
        notes.extend(more)

    for text in paths:
        path = Path(text)
        saved = path.is_dir() and is_saved(path)
        if path.is_dir() and not saved:
            folder = read_folder(path)
            if folder.all_tables() and not folder.all_images():  # such as a cloned repository of the Hub
                add(*unlabelled(text, image_column, split, image_folder))
                continue
            files += map(str, folder.all_images())
            for (suffix, why), count in folder.left_out().items():
                notes.append(f'{path}: {count} {suffix} left out ({why})')
        elif (
            saved or path.suffix.lower() in TABLES or (not path.exists() and (has_magic(text) or text.count('/') == 1))
        ):
            add(*unlabelled(text, image_column, split, image_folder))
        elif not path.exists():
            raise DataError(f'There is no {text}.')
        else:
            files.append(text)
    if files:
        found.insert(0, files_of(files))
    if not any(len(part) for part in found):
        raise DataError(f'{", ".join(paths)}: no image. {" ".join(notes)}'.strip())
    return found, notes


def sources(splits: Sequence[Split], indices: range) -> Iterator[tuple[Split, Item]]:
    """Images of the splits, one after the other, by their numbers in all of them, with their files."""
    first = 0
    for split in splits:
        for index in range(max(indices.start - first, 0), min(indices.stop - first, len(split))):
            yield split, Item(index, cell=split.cell(index))
        first += len(split)


def predict(predictor: Predictor, splits: Sequence[Split], indices: range) -> Iterator[dict[str, Any]]:
    """A row for each image, in order: `file`, and what `Predictor.predict` gives."""
    names: deque[str] = deque()

    def images() -> Iterator[tuple[Split, Item]]:
        for split, item in sources(splits, indices):
            names.append(split.cell_name(item.index, cell_of(split, item)))
            yield split, item

    def opened(image: tuple[Split, Item]) -> Image.Image:
        split, item = image
        try:
            return image_of(split, item, predictor.loaded.transforms.min_side)
        except ImageError as e:
            raise ImageError(str(e).removeprefix(f'{split.cell_name(item.index, cell_of(split, item))}: ')) from e

    for row in predictor.predict(images(), opened):
        yield dict(file=names.popleft(), **row)


@app.default
@exits_with_message()
def main(
    *paths: str,
    model: str,
    output: Path | None = None,
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
    threads: Annotated[int | None, Parameter(name=['--threads', '--workers'])] = None,
    device: str | None = None,
    engine: str = EAGER,
    json_: Annotated[bool, Parameter('--json', negative='')] = False,
) -> None:
    """Predicts the classes of images. Images that cannot be used are listed, and have an error instead of a label.

    Args:
        paths: Images, folders of images (with all in them), tables with a column of images, datasets of the Hub.
        model: A directory that finetune or convert wrote, or what timm.create_model takes.
        output: Table to write: .csv, .jsonl or .parquet; or a directory, for a table in parts that several processes
            write together, and that is continued where it was interrupted. By default rows are printed.
        top: Number of the likeliest classes in the column `top`.
        threshold: Probability above which a class counts, where an image has any number of them.
        probabilities: Write the probabilities of all classes, too, in the order of the model's outputs.
        embed: Write the features before the classifier instead of classes; to .jsonl, .parquet or a directory.
        multi_label: Whether an image has any number of classes. By default the model's config.json says so.
        image_size: Height and width of the images in pixels. By default the model's own.
        image_column: Column of a table with the images or their paths. By default it is found by type, then by name.
        image_folder: Folder of the images that a table names. By default the table's own.
        split: Split of a dataset that has several.
        grey_maximum: Value that is white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16.
        batch_size: Images in one step.
        shard_size: Images in each part of a table in a directory.
        threads: Threads that decode images. By default one for each core.
        device: Device that computes: cpu, cuda, mps. By default a GPU, if there is one.
        engine: What computes: eager (PyTorch as it is), auto (what is fastest here), or one by its name, such as
            openvino.
        json_: Print each row as a line of JSON, with all that a table has, instead of text.
    """
    warnings.showwarning = lambda message, *_: print(f'warning: {printable_lines(message)}', file=sys.stderr)
    keep_freed_memory()
    rank, processes = (int(os.environ.get(name, default)) for name, default in (('RANK', '0'), ('WORLD_SIZE', '1')))
    in_parts = _is_directory(output, embed, json_, shard_size, processes)
    if not paths:
        raise SettingsError('Name images, a folder, a table or a dataset: xception-hub predict photos --model DIR.')
    splits, notes = images_in(paths, image_column, split, image_folder)
    splits = [replace(s, grey_maximum=grey_maximum) for s in splits]
    predictor = Predictor(
        model, top, threshold, probabilities, embed, multi_label, image_size, grey_maximum, batch_size, threads,
        device, engine,
    )  # fmt: skip
    for note in notes if rank == 0 else []:
        print(printable_lines(note), file=sys.stderr)
    run = _Run(predictor, splits)
    if in_parts:
        assert output
        files = digest(s.files.encode() for s in splits)
        shards = Shards(output, run.total, shard_size, dict(predictor.identity(), images_digest=files))
        shards.start()
        run.write_parts(shards, rank, processes)
    else:
        run.write_table(output, json_)


def _is_directory(output: Path | None, embed: bool, json_: bool, shard_size: int, processes: int) -> bool:
    """Whether the output is a table in parts.

    Raises:
        SettingsError: It can be nothing that is asked for.
    """
    suffix = output.suffix if output else ''
    in_parts = bool(output and suffix not in prediction_tables.SUFFIXES and (not suffix or output.is_dir()))
    if output and not in_parts and suffix not in prediction_tables.SUFFIXES:
        raise SettingsError(
            f'{output} ends in {suffix!r}; a table ends in one of {", ".join(prediction_tables.SUFFIXES)}, and a '
            f'directory for a table in parts in none.'
        )
    if json_ and output:
        raise SettingsError(f'--json prints what --output {output} would hold: leave out one of them.')
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
    """Predicts all images, and tells how far it has come, which images are bad and how fast it was."""

    def __init__(self, predictor: Predictor, splits: Sequence[Split]) -> None:
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
                share = f'{row["probability"]:.3f}' if 'probability' in row else ''
                cells = map(printable, (row['file'], row['label'], share))
                tqdm.write('\t'.join(cells).rstrip(), file=sys.stdout)

        with prediction_tables.table(output, columns) if output else nullcontext(show) as write:
            for row in tqdm(self.rows(range(self.total)), total=self.total, unit='img', disable=None):
                write(row)
        self.tell(f'. Written: {output}' if output else '')

    def write_parts(self, shards: Shards, rank: int, processes: int) -> None:
        """Writes the parts that are missing and that no other process is writing."""
        missing = shards.missing()
        with tqdm(total=sum(len(shards.images_of(number)) for number in missing), unit='img', disable=None) as bar:

            def rows(indices: range) -> Iterator[dict[str, Any]]:
                for row in self.rows(indices):
                    bar.update()
                    yield row

            written = list(shards.write(['file', *self.predictor.columns], rows, rank, processes))
        others = len(shards.missing())
        self.tell(
            f'. Parts: {len(written)} written, {len(shards) - len(missing)} there before'
            + (f', {others} left to other processes' if others else '')
            + f': {shards.directory}'
        )

    def tell(self, more: str) -> None:
        seconds = time.perf_counter() - self.start
        print(
            f'{self.done - self.bad} of {self.done} images in {seconds:.1f} s ({self.done / seconds:.1f} img/s), '
            f'{self.bad} bad{more}',
            file=sys.stderr,
        )
