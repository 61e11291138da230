"""Tables as people write them: labels as they stand there, several in one text, and the split in a column."""

import ast
import csv
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features

from ..errors import DataError
from .split_names import split_of

TABLES = {'.csv': 'csv', '.tsv': 'csv', '.json': 'json', '.jsonl': 'json', '.parquet': 'parquet'}
SPLIT_COLUMNS = ('split', 'set', 'subset', 'partition', 'fold', 'usage')
# Columns that say yes or no, as fastai's is_valid: the split of False and that of True.
SPLIT_FLAGS = {
    **dict.fromkeys(('is_valid', 'is_val', 'is_validation'), ('train', 'validation')),
    'is_test': ('train', 'test'),
    'is_train': ('validation', 'train'),
}
UNCLEAR_FLAGS = ('is_valid',)  # it may say that a row is in order, too
BOOLEANS = {'false': 0, '0': 0, '0.0': 0, 'true': 1, '1': 1, '1.0': 1}
SEPARATORS = ('|', ';', ',', ' ', '/', '+', '&')
DELIMITERS = ',;\t|'
NUMBER = re.compile(r'[+-]?\d+')
FLOAT = re.compile(r'[+-]?\d*\.\d+')
WHOLE_FLOAT = re.compile(r'([+-]?\d+)\.0+')


def as_text(file: Path) -> dict[str, Any]:
    """Arguments with which `datasets` reads a .csv or .tsv: every cell as the text that it is, 001 and NA too.

    Raises:
        DataError: The first line is empty.
    """
    with open(file, encoding='utf-8-sig', newline='') as lines:
        head = lines.readline()
    delimiter = max(DELIMITERS, key=head.count)
    names = next(csv.reader([head], delimiter=delimiter), [])
    if not names:
        raise DataError(f'{file} begins with an empty line instead of the names of its columns.')
    features = Features({name: datasets.Value('string') for name in names})
    return dict(sep=delimiter, encoding='utf-8-sig', features=features, keep_default_na=False)


def divided(splits: dict[str, Any], column: str | None) -> dict[str, Any]:
    """The splits that a column names, if the dataset has only one itself.

    Args:
        splits: A `reading.Table` for each split.
        column: Name of the column; '' for none, None for one that tells by its name and its values that it is one.

    Raises:
        DataError: There is no such column, or it may be one and may be none.
    """
    table, *others = splits.values()
    rows = table.rows
    found = [given for given in rows.features if given.lower() in SPLIT_COLUMNS or given.lower() in SPLIT_FLAGS]
    if column == '' or (column is None and (others or not found)):
        return splits
    if column and column not in rows.features:
        raise DataError(f'{table.dataset} has no column {column!r}, but {", ".join(rows.features)}.')
    told, column = column is not None, column or found[0]
    if not isinstance(rows, Dataset):
        raise DataError(
            f'{table.dataset} has a column {column!r}, by whose values a stream cannot be divided. Leave out '
            f'--streaming, or ignore the column with --split-column "".'
        )
    values = [str(value) for value in rows[column]]
    flags = SPLIT_FLAGS.get(column.lower())
    if flags and {value.lower() for value in values} <= {*BOOLEANS}:
        values = [flags[BOOLEANS[value.lower()]] for value in values]
    if not told and (column.lower() in UNCLEAR_FLAGS or not all(split_of(value) for value in set(values))):
        listed = ', '.join(sorted(set(values))[:6])
        raise DataError(
            f'The column {column!r} of {table.dataset} may name the splits: {listed}. If it does: --split-column '
            f'{column}, with --train-split and --validation-split if these are others than train and validation. If it '
            f'does not: --split-column "".'
        )
    numbers: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        numbers.setdefault(value, []).append(row)
    return {value: replace(table, rows=rows.select(numbers[value])) for value in numbers}


def several_labels(
    values: dict[str, list[Any]], separator: str | None, dataset: str
) -> tuple[dict[str, list[Any]], bool]:
    """Labels that are lists in the form of texts, taken apart, and whether there are any.

    Raises:
        DataError: A text may be one label or several.
    """
    texts = {value for labels in values.values() for value in labels if isinstance(value, str)}
    if separator:
        return {
            name: [[part.strip() for part in value.split(separator) if part.strip()] if isinstance(value, str) else
                   value for value in labels]
            for name, labels in values.items()
        }, True  # fmt: skip
    if separator is None and texts and all(_is_list(text) for text in texts):
        return {
            name: [value if value is None else [str(item) for item in ast.literal_eval(value)] for value in labels]
            for name, labels in values.items()
        }, True
    for between in SEPARATORS if separator is None else ():
        for text in sorted(texts):
            parts = [part.strip() for part in text.split(between)]
            if len(parts) > 1 and all(part in texts for part in parts):
                raise DataError(
                    f'{dataset} has the label {text!r} beside {", ".join(map(repr, parts))}. If an image can have '
                    f'several labels: --label-separator "{between}". If {text!r} is a class of its own: '
                    f'--label-separator "".'
                )
    return values, False


def _is_list(text: str) -> bool:
    if not (text.startswith('[') and text.endswith(']')):
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return isinstance(value, list) and all(isinstance(item, (str, int)) for item in value)


def normal(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Labels without what cannot be seen: None for an empty text, whole numbers for 1.0, one form of accents."""
    texts = [value for labels in values.values() for value in labels if isinstance(value, str) and value]
    fractions = [text for text in texts if not WHOLE_FLOAT.fullmatch(text)]
    if fractions and all(FLOAT.fullmatch(text) for text in texts):
        return {name: [float(value) for value in labels if value] for name, labels in values.items()}  # no classes
    whole = all(
        value is None or value == '' or (isinstance(value, float) and value.is_integer())
        or (isinstance(value, str) and WHOLE_FLOAT.fullmatch(value))
        for labels in values.values() for value in labels
    )  # fmt: skip

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if whole and isinstance(value, float):
            return int(value)
        if isinstance(value, str):
            value = unicodedata.normalize('NFC', value.strip())
            return (WHOLE_FLOAT.sub(r'\1', value) if whole else value) or None
        return value

    return {name: [plain(value) for value in labels] for name, labels in values.items()}


def in_order(labels: Iterable[Any]) -> list[Any]:
    """Labels sorted: numbers as numbers, also where they are texts, all else as texts."""
    found = list(labels)
    if all(isinstance(label, str) and NUMBER.fullmatch(label) for label in found):
        return sorted(found, key=lambda label: (int(label), label))
    return sorted(found)
