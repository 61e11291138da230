"""Which columns of a table hold the images and the labels: by type, by name, or by what is in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image

from ..errors import DataError

IMAGE_COLUMNS = (
    'image', 'img', 'file_name', 'filename', 'file', 'path', 'image_path', 'img_path', 'file_path', 'filepath',
    'filepaths', 'image_name', 'img_name', 'image_file', 'image_id', 'id_code', 'fname', 'images',
)  # fmt: skip
LABEL_COLUMNS = (
    'label', 'labels', 'class', 'class_name', 'category', 'target', 'fine_label', 'classes', 'tags', 'class_id',
    'label_name', 'diagnosis', 'cls',
)  # fmt: skip
LISTS = (datasets.List, datasets.LargeList)
# What the cells of columns with the names of classes say: an image is of the class, or is not. A table that has both
# 0 and -1 may mean something else by one of them, such as uncertain.
YES, NO, MINUS = {'1', '1.0', 'true', 'yes'}, {'0', '0.0', 'false', 'no'}, {'-1', '-1.0'}


def item_feature(feature: Any) -> Any:
    """The feature of a list's items; that of anything else is itself."""
    return feature.feature if isinstance(feature, LISTS) else feature


def image_column(features: Features, dataset: str, given: str | None) -> str:
    """The column of images or paths.

    Raises:
        DataError: None can be told to be it, or there is none of the given name.
    """
    found = _given(features, dataset, given) or _by_type(features, Image) or _by_name(features, IMAGE_COLUMNS)
    if found is None:
        raise _untold(features, dataset, 'image')
    return found


def label_by_name(features: Features, given: str | None) -> str | None:
    """The column of labels, if one can be told by type or by name."""
    if given in features:
        return given
    return _by_type(features, ClassLabel) or _by_name(features, LABEL_COLUMNS)


def label_column(splits: Mapping[str, Any], dataset: str, given: str | None, image: str) -> tuple[str, list[str]]:
    """The column of labels; or the columns that stand for a class each.

    Args:
        splits: Rows of each split.
        dataset: Name for messages.
        given: Name that the caller gave; or several, with commas between them.
        image: The column of images.

    Returns:
        The name of the column, or '' and the names of several.

    Raises:
        DataError: None can be told, or there is none of the given names.
    """
    features = next(iter(splits.values())).features
    if given and given not in features and ',' in given:
        return '', [_given(features, dataset, name.strip()) or name for name in given.split(',')]
    found = _given(features, dataset, given) or label_by_name(features, None)
    if found and not given:
        _check_single(splits, dataset, found)
    if found:
        return found, []
    if all(isinstance(rows, Dataset) for rows in splits.values()):
        said = {name: _said(splits, name) for name in features if name != image}
        several = [name for name, values in said.items() if values and values <= YES | NO | MINUS]
        if len(several) > 1:
            return '', several
    raise _untold(features, dataset, 'label')


def _check_single(splits: Mapping[str, Any], dataset: str, found: str) -> None:
    """Raises a DataError if a second column may be that of the labels, too, and says something else."""
    for name in next(iter(splits.values())).features:
        if name == found or _plain(name) not in LABEL_COLUMNS:
            continue
        pairs = {
            (str(one), str(other))
            for rows in splits.values()
            if isinstance(rows, Dataset) and name in rows.features
            for one, other in zip(rows[found], rows[name])
        }
        pairs = {pair for pair in pairs if not {'', 'None'} & {*pair}}
        if not len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs}):
            raise DataError(
                f'{dataset} has labels in the columns {found!r} and {name!r}, which do not mean the same: choose '
                f'--label-column {found} or --label-column {name}.'
            )


def _said(splits: Mapping[str, Any], column: str) -> set[str]:
    """What a column says in any split, in lower case; nothing of images, and of one that says more than yes and no."""
    found: set[str] = set()
    for rows in (rows for rows in splits.values() if column in rows.features):
        if not isinstance(rows.features[column], datasets.Value) or 'binary' in rows.features[column].dtype:
            return set()
        for batch in rows.select_columns([column]).iter(batch_size=1000):
            found |= {str(value).lower() for value in batch[column]}
            if not found <= YES | NO | MINUS:
                return set()
    return found


def classes_of(rows: Dataset, names: Sequence[str]) -> np.ndarray:
    """[N, C], whether each image is of each class, by columns that stand for a class each.

    Raises:
        DataError: A cell says something else than yes or no.
    """
    said: set[str] = set()
    yes = np.zeros((len(rows), len(names)), bool)
    for number, name in enumerate(names):
        texts = [str(value).lower() for value in rows[name]]
        said |= {*texts}
        if strange := {*texts} - YES - NO - MINUS:
            row = next(row for row, text in enumerate(texts) if text in strange)
            raise DataError(f'The column {name!r} holds {rows[name][row]!r} in row {row} instead of 0 or 1.')
        yes[:, number] = [text in YES for text in texts]
    if said & NO and said & MINUS:
        raise DataError(
            f'The columns {", ".join(names[:6])} hold 0 and -1 beside 1, and what -1 means cannot be told. Write 1 or '
            f'0 for each class.'
        )
    return yes


def with_labels(rows: Dataset, names: Sequence[str], yes: np.ndarray, single: bool) -> Dataset:
    """Rows with a column `label` of what `classes_of` gives: one class, or a list of them."""
    kind = ClassLabel(names=list(names))
    values = yes.argmax(1).tolist() if single else [np.flatnonzero(row).tolist() for row in yes]
    others = rows.remove_columns([name for name in ('label',) if name in rows.features])
    return others.add_column('label', values, feature=kind if single else datasets.List(kind))


def _given(features: Features, dataset: str, given: str | None) -> str | None:
    if given is not None and given not in features:
        raise DataError(f'{dataset} has no column {given!r}, but {", ".join(features)}.')
    return given


def _by_type(features: Features, kind: type) -> str | None:
    found = [name for name, feature in features.items() if isinstance(item_feature(feature), kind)]
    return found[0] if len(found) == 1 else None


def _by_name(features: Features, known: Sequence[str]) -> str | None:
    """The column of the first known name, in any case; a space or a hyphen may stand for the underscore."""
    plain = {_plain(name): name for name in reversed(list(features))}
    return next((plain[name] for name in known if name in plain), None)


def _plain(name: str) -> str:
    return name.strip().lower().replace(' ', '_').replace('-', '_')


def _untold(features: Features, dataset: str, kind: str) -> DataError:
    return DataError(
        f'No column of {dataset} can be told to be the {kind}: it has {", ".join(features)}. Name one as the {kind} '
        f'column with --{kind}-column.'
    )
