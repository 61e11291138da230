"""Which columns of a table hold images and labels, and what the cells of the labels mean.

Every rule looks at the distinct cells of a column, which are few where rows are many.
"""

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
# What a cell in the column of a class means. A table that has both 0 and -1 may mean something else by one of them,
# such as uncertain.
NO, YES, MINUS, BLANK = range(4)
MEANINGS = {
    **dict.fromkeys(('0', '0.0', 'false', 'no'), NO),
    **dict.fromkeys(('1', '1.0', 'true', 'yes'), YES),
    **dict.fromkeys(('-1', '-1.0'), MINUS),
    **dict.fromkeys(('', 'none', 'nan'), BLANK),
}
SEPARATORS = ('|', ';', ',', ' ', '/', '+', '&')
NO_LABEL = '-1'  # where `datasets` has no label, as in the test splits of competitions
NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)')
WHOLE = re.compile(r'([+-]?\d+)(\.0+)?')


@dataclass(frozen=True)
class Labels:
    """The labels of all rows.

    Attributes:
        cells: [N] class names, in multi-label tuples of any number of them; None where there is none.
        declared: All class names in the dataset's own order; None where it does not declare any.
        multi_label: Whether cells are tuples.
    """

    cells: np.ndarray
    declared: list[str] | None = None
    multi_label: bool = False

    def names_in(self, rows: np.ndarray) -> set[str]:
        """The class names of some rows."""
        found = {*self.cells[rows]} - {None}
        return {name for names in found for name in names} if self.multi_label else found

    def numbers(self, rows: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
        """Labels of rows that have one, as numbers of the class names, [N], or as [N, C] of 0 and 1."""
        number = {name: number for number, name in enumerate(class_names)}
        if not self.multi_label:
            return np.array([number.get(name, -1) for name in self.cells[rows]], np.int64)
        kinds: dict[tuple[str, ...], int] = {}
        codes = [kinds.setdefault(names, len(kinds)) for names in self.cells[rows]]
        table = np.zeros((len(kinds), len(class_names)), np.int64)
        for row, names in enumerate(kinds):
            table[row, [number[name] for name in names if name in number]] = 1
        return table[codes]


# Which column


def existing(column: str, features: Iterable[str], dataset: str, kind: str) -> str:
    """The column, which has to be there; `kind` is that of its option."""
    if column not in (features := [*features]):
        raise DataError(f'{dataset} has no column {column!r}. It has: {listed(features, 20)}. Pass --{kind}-column.')
    return column


def image_column(features: Features, dataset: str, given: str | None) -> str:
    """The column of images or paths."""
    if given is not None:
        return existing(given, features, dataset, 'image')
    return by_type(features, Image) or by_name(features, IMAGE_COLUMNS) or _missing(features, dataset, 'image')


def label_by_name(features: Features) -> str | None:
    """The column of labels, by type or by name."""
    return by_type(features, ClassLabel) or by_name(features, LABEL_COLUMNS)


def by_type(features: Features, kind: type) -> str | None:
    """The only column of a type, or of lists of it."""
    found = [name for name, feature in features.items() if isinstance(_item(feature), kind)]
    return found[0] if len(found) == 1 else None


def label_columns(splits: Mapping[str, Any], dataset: str, given: str | None, image: str) -> list[str]:
    """The column of labels, or the columns that stand for a class each. `given` may name several with commas."""
    features = next(iter(splits.values())).features
    if given:
        names = [given] if given in features else [name.strip() for name in given.split(',')]
        return [existing(name, features, dataset, 'label') for name in names]
    here = [rows for rows in splits.values() if isinstance(rows, Dataset)]
    if found := label_by_name(features):
        for other in (name for name in features if name != found and plain(name) in LABEL_COLUMNS):
            if not _same(here, found, other):
                raise DataError(
                    f'{dataset} has different labels in the columns {found!r} and {other!r}. Choose --label-column '
                    f'{found} or --label-column {other}.'
                )
        return [found]
    several = [name for name in features if name != image and all(_is_of_class(rows, name) for rows in here)]
    return several if len(here) == len(splits) and len(several) > 1 else [_missing(features, dataset, 'label')]


def _item(feature: Any) -> Any:
    return feature.feature if isinstance(feature, LISTS) else feature


def _missing(features: Features, dataset: str, kind: str) -> str:
    raise DataError(
        f'Cannot find the {kind} column of {dataset}. It has: {listed(features, 20)}. Pass --{kind}-column.'
    )


def _same(splits: Sequence[Dataset], one: str, other: str) -> bool:
    """Whether two columns name the same classes, such as by numbers and by words."""
    columns = [(cells(rows, name).to_pylist() for name in (one, other)) for rows in splits if other in rows.features]
    pairs = {(str(a), str(b)) for both in columns for a, b in zip(*both) if a not in ('', None) and b not in ('', None)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def meanings(rows: Dataset, column: str, meaning: Callable[[str], Any]) -> set[Any]:
    """What the cells of a column mean; empty if one of them means nothing."""
    feature = rows.features.get(column)
    if not isinstance(feature, datasets.Value) or 'binary' in feature.dtype:
        return set()
    first = {meaning(str(value)) for value in rows.select(range(min(len(rows), 1000)))[column]}
    found = first if None in first else {meaning(str(value)) for value in distinct(cells(rows, column))[1]}
    return set() if None in found else found


def _is_of_class(rows: Dataset, column: str) -> bool:
    """Whether a column holds yes and no."""
    return not meanings(rows, column, _meaning) <= {BLANK}


def _meaning(value: Any) -> int | None:
    return MEANINGS.get(str(value).strip().lower())


# The cells


def cells(rows: Dataset, column: str) -> pyarrow.ChunkedArray:
    """A column, without a copy where the rows allow it."""
    return rows.select_columns([column]).with_format('arrow')[:][column]


def distinct(column: pyarrow.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """[N] number of each cell's value, -1 for none, and the distinct values."""
    if pyarrow.types.is_nested(column.type):
        whole = column.to_pylist()
        values = {repr(value): value for value in whole if value is not None}
        number = {text: number for number, text in enumerate(values)}
        return np.array([number.get(repr(value), -1) for value in whole], np.int64), [*values.values()]
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pyarrow.ChunkedArray) else encoded
    return encoded.indices.fill_null(-1).to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def read_labels(columns: Sequence[pyarrow.ChunkedArray], features: Sequence[Any], settings: DataSettings,
                dataset: str, name: str, layout: bool) -> Labels:  # fmt: skip
    """The labels of a column: its cells and its feature in each split.

    Names of folders (`layout`) are not taken apart.
    """
    where = f'The column {name!r} of {dataset}'
    if len({isinstance(feature, LISTS) for feature in features}) > 1:
        raise DataError(f'{where} holds lists in one split and no lists in another.')
    declared = _declared(features, dataset)
    codes, values = list[np.ndarray](), list[Any]()
    for column, feature in zip(columns, features):
        own, found = distinct(column)
        codes.append(np.where(own < 0, -1, own + len(values)))
        values += [_each(value, _named_by(feature)) for value in found]
    if values and all(isinstance(value, dict) and isinstance(value.get('choices'), list) for value in values):
        values = [value['choices'] for value in values]  # of Label Studio
    values = _texts(values, where)
    multi_label = any(isinstance(value, list) for value in values) or isinstance(features[0], LISTS)
    if not multi_label:
        values, multi_label = _several(values, settings.label_separator, dataset, layout)
    if multi_label and not declared:
        values, declared, multi_label = _multi_hot(values)
    if multi_label:
        values = [None if value is None or None in value else tuple(value) for value in values]
    return Labels(_by_row(np.concatenate(codes), values), declared, multi_label)


def _by_row(codes: np.ndarray, values: Sequence[Any]) -> np.ndarray:
    """[N] objects: the value of each code, None for -1."""
    return np.fromiter([*values, None], object, len(values) + 1)[codes]


def read_class_columns(
    splits: Mapping[str, Dataset], names: Sequence[str], settings: DataSettings
) -> tuple[Labels, str]:
    """The labels of columns that stand for a class each, and a sentence about them."""
    columns = []
    for name in names:
        codes, values = distinct(
            pyarrow.chunked_array([c for rows in splits.values() for c in cells(rows, name).chunks])
        )
        meant = [_meaning(value) for value in values]
        if None in meant:
            wrong = meant.index(None)
            row = int((codes == wrong).argmax())
            raise DataError(f'The column {name!r} holds {values[wrong]!r} in row {row} instead of 0 or 1.')
        columns.append(np.array([*meant, BLANK])[codes])
    table = np.stack(columns, 1)
    found = {*np.unique(table).tolist()}
    if BLANK in found and settings.blank_label is None:
        raise DataError(
            f'The columns {listed(names)} have empty cells. If these mean that the image is not of the class: '
            f'--blank-label no. To leave their rows aside: --blank-label skip.'
        )
    if {NO, MINUS} <= found and settings.uncertain is None:
        raise DataError(
            f'The columns {listed(names)} hold 0 and -1 beside 1. If -1 means that the image is of the class: '
            f'--uncertain yes. If not: --uncertain no. To leave such rows aside: --uncertain skip.'
        )
    skipped = [m for m, option in ((BLANK, settings.blank_label), (MINUS, settings.uncertain)) if option == 'skip']
    left = np.isin(table, skipped).any(1)
    patterns, codes = np.unique(
        (table == YES) | ((table == MINUS) & (settings.uncertain == 'yes')), axis=0, return_inverse=True
    )
    codes = np.where(left, -1, codes.reshape(-1))
    sets = [tuple(name for name, there in zip(names, row) if there) for row in patterns]
    single = all(len(sets[code]) == 1 for code in np.unique(codes[~left]))
    each = 'one of them for each image' if single else 'any number of them for each image'
    values = [next(iter(value), None) for value in sets] if single else sets
    note = f'The classes are the columns {listed(names)}: {each}.'
    return Labels(_by_row(codes, values), list(names), not single), note


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A label changed, or each label of a list."""
    return [change(item) for item in value] if isinstance(value, list) else change(value)


def _named_by(feature: Any) -> Callable[[Any], Any]:
    """Names in the place of declared numbers."""
    kind = _item(feature)
    if not isinstance(kind, ClassLabel):
        return lambda value: value
    names = {**dict(enumerate(kind.names)), -1: None if isinstance(feature, LISTS) else NO_LABEL}
    return names.get


def _declared(features: Sequence[Any], dataset: str) -> list[str] | None:
    found = [kind.names for kind in map(_item, features) if isinstance(kind, ClassLabel)]
    if any(names != found[0] for names in found):
        raise DataError(
            f'The splits of {dataset} name their classes differently: {" and ".join(str(n[:6]) for n in found)}.'
        )
    return list(found[0]) if found else None


def _texts(values: list[Any], where: str) -> list[Any]:
    """Labels as texts, without what cannot be seen: None for an empty one, 1 for 1.0, one form of accents."""
    every = [item for value in values for item in (value if isinstance(value, list) else [value])]
    every = [item for item in every if item not in ('', None) and item == item]
    if strange := [type(item).__name__ for item in every if not isinstance(item, (str, int, float))]:
        raise DataError(f'{where} holds {strange[0]} instead of class names or numbers.')
    numbers = all(isinstance(item, float) or (isinstance(item, str) and NUMBER.fullmatch(item)) for item in every)
    whole = all(WHOLE.fullmatch(str(item)) for item in every)
    if numbers and not whole:
        raise DataError(
            f'{where} holds decimal numbers, such as {next(i for i in every if not WHOLE.fullmatch(str(i)))}. '
            f'finetune trains classes, not values (a regression); RegressionBlock of fastai trains values. If each '
            f'number is a class, write it as a name, such as "grade 0.5".'
        )

    def text(item: Any) -> str | None:
        if item is None or item != item:
            return None
        found = unicodedata.normalize('NFC', str(item).strip())
        return (WHOLE.sub(r'\1', found) if numbers else found) or None

    return [_each(value, text) for value in values]


def _several(values: list[Any], separator: str | None, dataset: str, layout: bool) -> tuple[list[Any], bool]:
    """Labels that are lists in the form of texts, taken apart, and whether there are any."""
    texts = {*values} - {None}
    if separator:
        return [v and [part.strip() for part in v.split(separator) if part.strip()] for v in values], True
    lists = {text: found for text in texts if separator is None and (found := _list_in(text)) is not None}
    if lists:  # Label Studio writes one choice as its name, several as a list
        return [v and lists.get(v, [v]) for v in values], True
    for between in SEPARATORS if separator is None else ():
        parts = {text: [part.strip() for part in text.split(between)] for text in texts}
        counts = Counter(part for found in parts.values() for part in {*found})
        several = {text: found for text, found in parts.items() if len(found) > 1}
        alone = [text for text, found in several.items() if all(part in texts for part in found)]
        recurring = [text for text, found in several.items() if all(counts[part] > 1 for part in found)]
        # names of several words (New York, red car) are as many as their words, and of as many words each
        if layout or (between == ' ' and len({*map(len, parts.values())}) == 1 and len(counts) > len(texts)):
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
    for read in (json.loads, ast.literal_eval) if text[:1] + text[-1:] in ('[]', '{}') else ():
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = read(text)
            value = value.get('choices') if isinstance(value, dict) else value
            if isinstance(value, list) and all(isinstance(item, (str, int)) for item in value):
                return [str(item) for item in value]
    return None


def _multi_hot(values: list[Any]) -> tuple[list[Any], list[str] | None, bool]:
    """Lists of a 0 or 1 for each class ([1, 0, 0]) as lists of classes, or as classes if each has exactly one."""
    lists = [value for value in values if value is not None]
    flags = {str(item).lower() for value in lists for item in value}
    size = len(lists[0]) if lists else 0
    if size < 2 or any(len(value) != size for value in lists) or not flags <= {'0', '1', 'true', 'false'}:
        return values, None, True
    names = [str(number) for number in range(size)]
    found = [v and [name for name, flag in zip(names, v) if flag.lower() in ('1', 'true')] for v in values]
    if all(value is None or len(value) == 1 for value in found):
        return [value and value[0] for value in found], names, False
    return found, names, True


def in_order(names: Iterable[str]) -> list[str]:
    """Class names sorted: numbers as numbers, all else as texts."""
    found = list(names)
    numbers = all(re.fullmatch(r'[+-]?\d+', name) for name in found)
    return sorted(found, key=lambda name: (int(name), name)) if numbers else sorted(found)
