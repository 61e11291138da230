"""Tables of predictions, a row for each image: an evaluation writes the same as `xception-hub predict`.

file            path of the image, or its row in the dataset
target          label of the image in the dataset, if known; in multi-label a JSON list
label           most probable class; in multi-label a JSON list of all classes above the threshold
probability     probability of the label; empty in multi-label
top             JSON list of the most probable classes, each with its probability
probabilities   JSON list of the probabilities of all classes, on request
features        features before the classifier, on request
error           reason why the image is bad; the other columns but file and target are then empty

In .jsonl the lists are lists, and each class of `top` is an object: {"label": "cup", "score": 0.9}.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..files import replacing

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ('file', 'target', 'label', 'probability', 'top', 'probabilities', 'features', 'error')
SUFFIXES = ('.csv', '.jsonl', '.parquet')
AT_ONCE = 1000  # rows that are written together


def row(likeliest: Sequence[tuple[str, float]], found: Sequence[str] | None) -> dict[str, Any]:
    """Makes the cells of an image.

    Args:
        likeliest: The most probable classes with their probabilities, in descending order.
        found: In multi-label, all classes above the threshold.
    """
    top = [[name, _rounded(value)] for name, value in likeliest]
    single = dict(label=top[0][0], probability=top[0][1])
    return dict(single if found is None else dict(label=as_json(found)), top=as_json(top))


def as_json(values: Sequence[Any]) -> str:
    return json.dumps([_rounded(value) if isinstance(value, float) else value for value in values], ensure_ascii=False)


def _rounded(value: float) -> float:
    return float(f'{value:.7g}')  # the digits of float32


def json_line(values: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Converts a row to a line of .jsonl, with null for missing cells and lists instead of texts of JSON."""
    cells: dict[str, Any] = {name: values.get(name) for name in COLUMNS if name in columns}
    is_multi_label = cells.get('probability') is None
    for name in ('top', 'probabilities', *(['label'] if is_multi_label else [])):
        if cells.get(name) is not None:
            cells[name] = json.loads(cells[name])
    if cells.get('top') is not None:
        cells['top'] = [dict(label=label, score=score) for label, score in cells['top']]
    return json.dumps(cells, ensure_ascii=False)


@contextmanager
def table(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes a row into a .csv, .jsonl or .parquet; the file is there when it is complete.

    Args:
        path: Path of the file.
        columns: Names of the columns, of `COLUMNS`.

    Raises:
        DataError: The file cannot be written. An earlier one is unchanged.
    """
    import pyarrow

    types = dict(probability=pyarrow.float64(), features=pyarrow.list_(pyarrow.float32()))
    schema = pyarrow.schema({name: types.get(name, pyarrow.string()) for name in COLUMNS if name in columns})
    rows: list[Mapping[str, Any]] = []
    try:
        with replacing(path) as part, _writing(part, path.suffix, schema) as write:

            def add(values: Mapping[str, Any]) -> None:
                rows.append(values)
                if len(rows) == AT_ONCE:
                    write(rows)
                    rows.clear()

            yield add
            write(rows)
    except OSError as e:
        raise DataError(f'{path} could not be written: {e}.') from e


@contextmanager
def _writing(path: Path, suffix: str, schema: 'pyarrow.Schema') -> Iterator[Callable[[list[Mapping[str, Any]]], None]]:
    if suffix == '.jsonl':
        with open(path, 'w', encoding='utf-8') as file:
            yield lambda rows: file.writelines(json_line(values, schema.names) + '\n' for values in rows)
        return
    from pyarrow import Table, csv, parquet

    with (csv.CSVWriter if suffix == '.csv' else parquet.ParquetWriter)(path, schema) as writer:
        yield lambda rows: writer.write_table(Table.from_pylist(rows, schema)) if rows else None
