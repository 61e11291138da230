"""From what a column of labels holds to the names of the classes and the number of each image's class."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset

from ..errors import DataError, in_one_line
from . import tables
from .columns import LISTS, item_feature
from .reading import Table, read

NO_LABEL = -1  # where `datasets` has no label, as in the test splits of competitions


def label_values(splits: Mapping[str, Table], column: str) -> dict[str, list[Any]]:
    """All labels of each split, read without its images, each as a plain text or number.

    Raises:
        DataError: They cannot be read, or a split is empty.
    """
    values = {}
    for name, table in splits.items():
        rows = table.rows
        if isinstance(rows, IterableDataset):
            with contextlib.suppress(DataError):  # of formats that can't be read by columns
                rows = read(table.dataset, table.config, streaming=True, columns=[column]).tables[table.split].rows
        rows = rows.select_columns([column])
        try:
            values[name] = list(rows[column]) if isinstance(rows, Dataset) else [row[column] for row in rows]
        except Exception as e:  # of files, formats and the network: no error in common
            raise DataError(f'The labels of {table.dataset} cannot be read ({in_one_line(e)}).') from e
        if not values[name]:
            raise DataError(f'The split {name!r} of {table.dataset} is empty.')
    return tables.normal(values)


def kinds_of(splits: Mapping[str, Table], column: str) -> tuple[dict[str, Any], bool]:
    """The feature of each split's labels, and whether they are lists.

    Raises:
        DataError: One split has lists, and another has none.
    """
    lists = {isinstance(table.rows.features[column], LISTS) for table in splits.values()}
    if len(lists) > 1:
        dataset = next(iter(splits.values())).dataset
        raise DataError(f'The column {column!r} of {dataset} holds lists in one split and no lists in another.')
    return {name: item_feature(table.rows.features[column]) for name, table in splits.items()}, lists.pop()


def labelled_rows(
    values: Mapping[str, list[Any]], kinds: Mapping[str, Any], dataset: str, unlabelled: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The rows of each split that have a label, and notes on those that are left aside.

    Args:
        values: Labels of each split.
        kinds: Feature of each split's labels.
        dataset: Name for messages.
        unlabelled: 'error', 'skip', or 'class' if -1 is a class of its own.

    Raises:
        DataError: Rows have no label, or -1 may mean that they have none.
    """
    declared = any(isinstance(kind, ClassLabel) for kind in kinds.values())
    others = {str(value) for labels in values.values() for value in labels if value is not None} - {str(NO_LABEL)}
    numbers = len(others) > 1 and all(text.isdecimal() for text in others)
    found, notes = {}, []
    for name, labels in values.items():
        marked = [row for row, value in enumerate(labels) if str(value) == str(NO_LABEL)]
        if marked and numbers and not declared and unlabelled == 'error':
            raise DataError(
                f'The split {name!r} of {dataset} has {len(marked)} labels {NO_LABEL} beside '
                f'{", ".join(sorted(others)[:4])}. If they mean that there is no label: --unlabelled skip. If '
                f'{NO_LABEL} is a class: --unlabelled class.'
            )
        missing = [row for row, value in enumerate(labels) if value is None]
        if missing and unlabelled != 'skip':
            raise _without_label(missing, name, dataset)
        if declared or (numbers and unlabelled == 'skip'):
            missing = sorted({*missing, *marked})
        found[name] = np.setdiff1d(np.arange(len(labels)), missing)
        if missing:
            notes.append(f'{len(missing)} of {len(labels)} rows of the split {name!r} are left aside: without a label.')
        if not len(found[name]):
            raise DataError(
                f'No row of the split {name!r} of {dataset} has a label. Name another with --validation-split, or '
                f'predict the classes of its images: xception-hub predict.'
            )
    return found, notes


def has_no_labels(values: Iterable[Any], kind: Any) -> bool:
    """Whether no image of a split has a label, as in the test splits of competitions."""
    nothing = (None, NO_LABEL) if isinstance(kind, ClassLabel) else (None, NO_LABEL, str(NO_LABEL))
    return all(not isinstance(value, list) and value in nothing for value in values)


def check_values(values: Mapping[str, list[Any]], dataset: str, column: str, multi_label: bool) -> None:
    """Raises a DataError if labels are no texts or numbers."""
    for labels in values.values():
        strange = next((value for value in each(labels, multi_label) if not isinstance(value, (str, int))), None)
        if strange is not None:
            raise DataError(
                f'The column {column!r} of {dataset} holds {type(strange).__name__} instead of class names or numbers.'
            )


def _without_label(rows: list[int], name: str, dataset: str) -> DataError:
    return DataError(
        f'{len(rows)} rows of the split {name!r} of {dataset} have no label, the first of them row '
        f'{rows[0]}. Label them, or leave them aside with --unlabelled skip.'
    )


def class_names_of(
    kinds: Mapping[str, Any], values: Mapping[str, list[Any]], dataset: str, multi_label: bool, least: int
) -> list[str]:
    """The dataset's own, in its own order; else those that occur in the first split, sorted, numbers as numbers.

    Raises:
        DataError: Splits name them differently, or there are fewer than `least`.
    """
    declared = {name: kind.names for name, kind in kinds.items() if isinstance(kind, ClassLabel)}
    if declared:
        first, *others = declared.values()
        if any(names != first for names in others):
            raise DataError(
                f'The splits of {dataset} name their classes differently: '
                f'{"; ".join(f"{name}: {names[:6]}" for name, names in declared.items())}.'
            )
        class_names = list(first)
    else:
        class_names = [str(value) for value in tables.in_order(set(each(next(iter(values.values())), multi_label)))]
    if len(class_names) < least:
        raise DataError(
            f'{dataset} has {len(class_names)} class ({", ".join(class_names) or "none"}); '
            f'there is nothing to learn from less than two.'
        )
    return class_names


def each(labels: Iterable[Any], multi_label: bool) -> Iterator[Any]:
    """The single labels."""
    for value in labels:
        yield from (item for item in value if item is not None) if multi_label else (value,)


def numbers_of(
    values: list[Any], kind: Any, class_names: list[str], multi_label: bool, name: str, dataset: str
) -> np.ndarray:
    """Labels as numbers of the class names, [N], or as [N, C] of 0 and 1.

    Raises:
        DataError: A label is none of the classes.
    """
    count = len(class_names)
    if isinstance(kind, ClassLabel):
        numbers: dict[Any, int] = {number: number for number in range(count)}
    else:
        named = {class_name: number for number, class_name in enumerate(class_names)}
        occurring = set(each(values, multi_label))
        unknown = sorted(str(value) for value in occurring if str(value) not in named)
        if unknown:
            raise DataError(
                f'The split {name!r} of {dataset} has classes that are not trained on: {", ".join(unknown[:6])}.'
            )
        numbers = {value: named[str(value)] for value in occurring}
    lists = values if multi_label else [[value] for value in values]
    missing = [row for row, items in enumerate(lists) if any(item not in numbers for item in items)]
    if missing:
        raise _without_label(missing, name, dataset)
    if not multi_label:
        return np.array([numbers[value] for value in values], np.int64)
    labels = np.zeros((len(values), count), np.int64)
    for row, items in enumerate(values):
        labels[row, [numbers[item] for item in items]] = 1
    return labels
