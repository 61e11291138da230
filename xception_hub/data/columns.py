"""Which columns of a table hold images and labels, and what the cells of the labels mean.

Every rule looks at the distinct cells of a column, which are few where rows are many.
"""

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, Features, Image

from ..errors import DataError, listed
from .data_settings import DataSettings
from .known_names import IMAGE_COLUMNS, LABEL_COLUMNS, by_name, plain

LISTS = (datasets.List, datasets.LargeList)
# What the cells of columns with the names of classes mean: an image is of the class, or is not. A table that has both
# 0 and -1 may mean something else by one of them, such as uncertain.
YES, NO, MINUS = {'1', '1.0', 'true', 'yes'}, {'0', '0.0', 'false', 'no'}, {'-1', '-1.0'}
BLANK = {'', 'none', 'nan'}
SEPARATORS = ('|', ';', ',', ' ', '/', '+', '&')
NO_LABEL = '-1'  # where `datasets` has no label, as in the test splits of competitions
NUMBER = re.compile(r'[+-]?\d+')
FLOAT = re.compile(r'[+-]?\d*\.\d+')
WHOLE_FLOAT = re.compile(r'([+-]?\d+)\.0+')


@dataclass(frozen=True)
class Labels:
    """The labels of all rows.

    Attributes:
        codes: [N], number of each row's value; -1 for none.
        values: The distinct values: a class name; or of multi-label a tuple of any number of them.
        declared: All class names in the dataset's own order; None where it does not declare any.
        multi_label: Whether values are tuples.
    """

    codes: np.ndarray
    values: list[Any]
    declared: list[str] | None = None
    multi_label: bool = False

    def names_in(self, rows: np.ndarray) -> set[str]:
        """The class names of some rows."""
        found = (self.values[code] for code in np.unique(self.codes[rows]) if code >= 0)
        return {name for value in found for name in (value if self.multi_label else (value,))}

    def numbers(self, class_names: Sequence[str]) -> np.ndarray:
        """Labels of rows that have one, as numbers of the class names, [N], or as [N, C] of 0 and 1."""
        number = {name: number for number, name in enumerate(class_names)}
        if not self.multi_label:
            return np.array([number.get(value, -1) for value in self.values] or [-1], np.int64)[self.codes]
        table = np.zeros((len(self.values) or 1, len(class_names)), np.int64)
        for row, value in enumerate(self.values):
            table[row, [number[name] for name in value if name in number]] = 1
        return table[self.codes]


# Which column


def image_column(features: Features, dataset: str, given: str | None) -> str:
    """The column of images or paths.

    Raises:
        DataError: None can be found, or there is none of the given name.
    """
    found = _given(features, dataset, given) or by_type(features, Image) or by_name(features, IMAGE_COLUMNS)
    if found is None:
        raise _not_found(features, dataset, 'image')
    return found


def label_by_name(features: Features) -> str | None:
    """The column of labels, by type or by name."""
    return by_type(features, ClassLabel) or by_name(features, LABEL_COLUMNS)


def by_type(features: Features, kind: type) -> str | None:
    """The only column of a type, or of lists of it."""
    found = [name for name, feature in features.items() if isinstance(_item(feature), kind)]
    return found[0] if len(found) == 1 else None


def label_columns(splits: Mapping[str, Any], dataset: str, given: str | None, image: str) -> list[str]:
    """The column of labels; or the columns that stand for a class each.

    Args:
        splits: Rows of each split.
        dataset: Name for messages.
        given: Name that the caller gave; or several, with commas between them.
        image: The column of images.

    Raises:
        DataError: None can be found, or there is none of the given names.
    """
    features = next(iter(splits.values())).features
    if given and given not in features and ',' in given:
        return [_given(features, dataset, name.strip()) or name for name in given.split(',')]
    if given:
        return [_given(features, dataset, given) or given]
    here = [rows for rows in splits.values() if isinstance(rows, Dataset)]
    if found := label_by_name(features):
        for other in features:
            if other != found and plain(other) in LABEL_COLUMNS and not _same(here, found, other):
                raise DataError(
                    f'{dataset} has labels in the columns {found!r} and {other!r}, which do not mean the same: choose '
                    f'--label-column {found} or --label-column {other}.'
                )
        return [found]
    several = [name for name in features if name != image and all(_is_of_class(rows, name) for rows in here)]
    if len(here) == len(splits) and len(several) > 1:
        return several
    raise _not_found(features, dataset, 'label')


def _item(feature: Any) -> Any:
    return feature.feature if isinstance(feature, LISTS) else feature


def _given(features: Features, dataset: str, given: str | None) -> str | None:
    if given is not None and given not in features:
        raise DataError(f'{dataset} has no column {given!r}, but {listed(features, 20)}.')
    return given


def _not_found(features: Features, dataset: str, kind: str) -> DataError:
    return DataError(
        f'No column of {dataset} can be told to be the {kind}: it has {listed(features, 20)}. Name one as the {kind} '
        f'column with --{kind}-column.'
    )


def _same(splits: Sequence[Dataset], one: str, other: str) -> bool:
    """Whether two columns name the same classes, such as by numbers and by words."""
    pairs: set[tuple[Any, Any]] = set()
    for rows in (rows for rows in splits if other in rows.features):
        codes, values = zip(*(distinct(cells(rows, name)) for name in (one, other)))
        found = np.unique(np.stack(codes), axis=1).T.tolist()
        pairs |= {(str(values[0][a]), str(values[1][b])) for a, b in found if a >= 0 and b >= 0}
    pairs = {pair for pair in pairs if '' not in pair}
    return len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs})


def _is_of_class(rows: Dataset, column: str) -> bool:
    """Whether a column holds yes and no."""
    feature = rows.features.get(column)
    if not isinstance(feature, datasets.Value) or 'binary' in feature.dtype:
        return False
    first = {str(value).strip().lower() for value in rows.select(range(min(len(rows), 1000)))[column]}
    known = YES | NO | MINUS | BLANK
    found = {str(v).strip().lower() for v in distinct(cells(rows, column))[1]} if first <= known else first
    return found <= known and bool(found - BLANK)


# The cells


def cells(rows: Dataset, column: str) -> pyarrow.ChunkedArray:
    """A column, without a copy where the rows allow it."""
    return rows.select_columns([column]).with_format('arrow')[:][column]


def distinct(column: pyarrow.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """[N] number of each cell's value, -1 for none, and the distinct values."""
    if not pyarrow.types.is_nested(column.type):
        encoded = column.combine_chunks().dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pyarrow.ChunkedArray) else encoded
        return encoded.indices.fill_null(-1).to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
    number: dict[Any, int] = {}
    values, codes = list[Any](), np.empty(len(column), np.int64)
    for row, value in enumerate(column.to_pylist()):
        key = repr(value)
        if value is not None and key not in number:
            number[key] = len(values)
            values.append(value)
        codes[row] = -1 if value is None else number[key]
    return codes, values


def read_labels(columns: Sequence[pyarrow.ChunkedArray], features: Sequence[Any], settings: DataSettings,
                dataset: str, name: str, layout: bool) -> Labels:  # fmt: skip
    """The labels of a column.

    Args:
        columns: The column's cells in each split.
        features: Its feature in each split.
        settings: What is asked of labels.
        dataset: Name for messages.
        name: Name of the column.
        layout: Whether the labels are names of folders.

    Raises:
        DataError: The cells are no labels, or may be one label or several.
    """
    if len({isinstance(feature, LISTS) for feature in features}) > 1:
        raise DataError(f'The column {name!r} of {dataset} holds lists in one split and no lists in another.')
    parts = [_named(*distinct(column), feature) for column, feature in zip(columns, features)]
    declared = _declared(features, dataset)
    together = joined(parts)
    choices = [value['choices'] for value in together.values if isinstance(value, dict) and 'choices' in value]
    are_choices = bool(choices) and len(choices) == len(together.values)  # of Label Studio
    values = _normal(choices if are_choices else together.values)
    multi_label = are_choices or isinstance(features[0], LISTS)
    if not multi_label:
        values, multi_label = _several(values, settings.label_separator, dataset, layout)
    if multi_label and not declared:
        values, declared, multi_label = _multi_hot(values)
    for value in [item for v in values for item in (v if isinstance(v, list) else [v])]:
        if not isinstance(value, str) and value is not None:
            raise DataError(
                f'The column {name!r} of {dataset} holds {type(value).__name__} instead of class names or numbers.'
                + (
                    ' A network for values (a regression) is not trained here; RegressionBlock of fastai does that. '
                    'Where each value is a class, write it as a name, such as "grade 0.5".'
                    if value == value and isinstance(value, float)
                    else ''
                )
            )
    whole = [None if value is None or (multi_label and None in value) else value for value in values]
    return joined([(together.codes, [tuple(v) if isinstance(v, list) else v for v in whole])], declared, multi_label)


def read_class_columns(
    splits: Mapping[str, Dataset], names: Sequence[str], settings: DataSettings
) -> tuple[Labels, str]:
    """The labels of columns that stand for a class each, and a sentence about them.

    Raises:
        DataError: A cell means something else than yes or no, or may mean several things.
    """
    meant = dict.fromkeys(YES, 1) | dict.fromkeys(NO, 0) | dict.fromkeys(MINUS, 2) | dict.fromkeys(BLANK, 3)
    found, columns = set[int](), []
    for name in names:
        parts = []
        for rows in splits.values():
            codes, values = distinct(cells(rows, name))
            texts = np.array([meant.get(str(value).strip().lower(), -1) for value in values] + [3])
            kinds = texts[codes]
            if (kinds < 0).any():
                row = int((kinds < 0).argmax())
                raise DataError(f'The column {name!r} holds {rows[row][name]!r} in row {row} instead of 0 or 1.')
            found |= {*kinds.tolist()}
            parts.append(kinds)
        columns.append(np.concatenate(parts))
    table = np.stack(columns, 1)
    if 3 in found and settings.blank_label is None:
        raise DataError(
            f'The columns {listed(names)} have empty cells. If these mean that the image is not of the class: '
            f'--blank-label no. To leave their rows aside: --blank-label skip.'
        )
    if {0, 2} <= found and settings.uncertain is None:
        raise DataError(
            f'The columns {listed(names)} hold 0 and -1 beside 1, and what -1 means cannot be told. If it means that '
            f'the image is of the class: --uncertain yes. If not: --uncertain no. To leave such rows aside: '
            f'--uncertain skip.'
        )
    left = (table == 3).any(1) & (settings.blank_label == 'skip') | (table == 2).any(1) & (settings.uncertain == 'skip')
    yes = (table == 1) | ((table == 2) & (settings.uncertain == 'yes'))
    patterns, codes = np.unique(yes, axis=0, return_inverse=True)
    codes = np.where(left, -1, codes.reshape(-1))
    single = bool((yes[~left].sum(1) == 1).all())
    sets = [tuple(name for name, there in zip(names, row) if there) for row in patterns]
    classes: list[Any] = [value[0] if value else None for value in sets] if single else sets
    each = 'one of them for each image' if single else 'any number of them for each image'
    note = f'The classes are the columns {listed(names)}: {each}.'
    return Labels(codes, classes, list(names), not single), note


def joined(parts: Iterable[tuple[np.ndarray, list[Any]]], declared: Any = None, multi_label: bool = False) -> Labels:
    """Labels of several splits with the values that occur in any of them, each once."""
    number: dict[Any, int] = {}
    values, codes = list[Any](), []
    for own, found in parts:
        for value in found:
            if value is not None and _key(value) not in number:
                number[_key(value)] = len(values)
                values.append(value)
        codes.append(np.array([-1 if v is None else number[_key(v)] for v in found] + [-1], np.int64)[own])
    return Labels(np.concatenate(codes), values, declared, multi_label)


def _key(value: Any) -> Any:
    return (type(value).__name__, repr(value))


def _named(codes: np.ndarray, values: list[Any], feature: Any) -> tuple[np.ndarray, list[Any]]:
    """Names in the place of declared numbers."""
    kind = _item(feature)
    if not isinstance(kind, ClassLabel):
        return codes, values

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(item) for item in value]
        return kind.names[value] if value is not None and 0 <= value < len(kind.names) else None

    return codes, [NO_LABEL if value == -1 else name(value) for value in values]


def _declared(features: Sequence[Any], dataset: str) -> list[str] | None:
    found = [kind.names for kind in map(_item, features) if isinstance(kind, ClassLabel)]
    if any(names != found[0] for names in found):
        raise DataError(
            f'The splits of {dataset} name their classes differently: {" and ".join(str(n[:6]) for n in found)}.'
        )
    return list(found[0]) if found else None


def _normal(values: list[Any]) -> list[Any]:
    """Labels as texts, without what cannot be seen: None for an empty one, 1 for 1.0, one form of accents."""
    filled = [value for value in values if value is not None and value != '']
    texts = [value for value in filled if isinstance(value, str)]
    if any(not WHOLE_FLOAT.fullmatch(text) for text in texts) and all(FLOAT.fullmatch(text) for text in texts):
        return [float(value) if value else None for value in values]  # no classes
    whole = all(
        value.is_integer() if isinstance(value, float) else isinstance(value, str) and WHOLE_FLOAT.fullmatch(value)
        for value in filled
    )

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(item) for item in value]
        if isinstance(value, float):
            return str(int(value)) if value.is_integer() and (whole or value in (0, 1)) else value
        if isinstance(value, (bool, int)):
            return str(value)
        if isinstance(value, str):
            value = unicodedata.normalize('NFC', value.strip())
            return (WHOLE_FLOAT.sub(r'\1', value) if whole else value) or None
        return value

    return [text(value) for value in values]


def _several(values: list[Any], separator: str | None, dataset: str, layout: bool) -> tuple[list[Any], bool]:
    """Labels that are lists in the form of texts, taken apart, and whether there are any.

    Raises:
        DataError: A text may be one label or several.
    """
    texts = {value for value in values if isinstance(value, str)}
    if separator:
        apart = {text: [part.strip() for part in text.split(separator) if part.strip()] for text in texts}
        return [apart.get(value, value) for value in values], True
    if separator is None and texts and all(_list_in(text) is not None for text in texts):
        return [value if value is None else _list_in(value) for value in values], True
    for between in SEPARATORS if separator is None else ():
        parts = {text: [part.strip() for part in text.split(between)] for text in texts}
        counts = Counter(part for found in parts.values() for part in {*found})
        several = {text: found for text, found in parts.items() if len(found) > 1}
        alone = [text for text, found in several.items() if all(part in texts for part in found)]
        recurring = [] if layout else [t for t, found in several.items() if all(counts[part] > 1 for part in found)]
        # names of several words (New York, red car) are as many as their words, and of as many words each
        if between == ' ' and len({*map(len, parts.values())}) == 1 and len(counts) > len(texts):
            recurring = []
        for text in sorted(alone) or sorted(recurring):
            raise DataError(
                f'{dataset} has the label {text!r}, and {", ".join(map(repr, parts[text]))} in others. If an image can '
                f'have several labels: --label-separator "{between}". If {text!r} is a class of its own: '
                f'--label-separator "".'
            )
    return values, False


def _list_in(text: str) -> list[str] | None:
    """The labels of a list as pandas and JSON write it, or of Label Studio's {"choices": [...]}."""
    if text[:1] + text[-1:] not in ('[]', '{}'):
        return None
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = read(text)
            value = value.get('choices') if isinstance(value, dict) else value
            if isinstance(value, list) and all(isinstance(item, (str, int)) for item in value):
                return [str(item) for item in value]
    return None


def _multi_hot(values: list[Any]) -> tuple[list[Any], list[str] | None, bool]:
    """Lists of a 0 or 1 for each class ([1, 0, 0]) as lists of classes, or as classes if each has exactly one."""
    lists = [value for value in values if value is not None]
    sizes = {len(value) for value in lists if isinstance(value, list)}
    flags = {str(item).lower() for value in lists if isinstance(value, list) for item in value}
    if len(sizes) != 1 or max(sizes) < 2 or not flags <= {'0', '1', 'true', 'false'}:
        return values, None, True
    names = [str(number) for number in range(max(sizes))]
    found = [v and [name for name, flag in zip(names, v) if flag.lower() in ('1', 'true')] for v in values]
    if all(value is None or len(value) == 1 for value in found):
        return [value and value[0] for value in found], names, False
    return found, names, True


def in_order(names: Iterable[str]) -> list[str]:
    """Class names sorted: numbers as numbers, all else as texts."""
    found = list(names)
    if all(NUMBER.fullmatch(name) for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)
