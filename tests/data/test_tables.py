"""Tables as people write them: their labels are what stands there, or a question with an option for each answer."""

import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets_read import load
from PIL import Image

from xception_hub.data.labelled import Data
from xception_hub.errors import DataError

FORMS = {
    'csv': dict(separator=',', suffix='.csv', start=''),
    'semicolons and a byte order mark': dict(separator=';', suffix='.csv', start='\ufeff'),
    'tsv': dict(separator='\t', suffix='.tsv', start=''),
}


def write(
    folder: Path, labels: list[Any], separator: str = ',', suffix: str = '.csv', start: str = '', **columns: Any
) -> Path:
    """A table of an image for each label, and the images."""
    lines = [separator.join(['image', 'label', *columns])]
    for i, label in enumerate(labels):
        Image.new('RGB', (8, 8), (i, i, i)).save(folder / f'{i}.png')
        cell = f'"{label}"' if separator in str(label) else str(label)
        lines.append(separator.join([f'{i}.png', cell, *(str(values[i]) for values in columns.values())]))
    file = folder / f'table{suffix}'
    file.write_text(start + '\n'.join(lines) + '\n', encoding='utf-8')
    return file


def labels_of(data: Data) -> list[Any]:
    """The names of each image's classes."""
    if data.multi_label:
        return [[data.class_names[i] for i, there in enumerate(row) if there] for row in data.train.labels]
    return [data.class_names[label] for label in data.train.labels]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    'labels',
    [
        ['001', '1', '010'],
        ['NA', 'None', 'null', 'nan'],
        ['1', '10', '2'],
        ['true', 'False'],
        ['Ünal', 'b c'],
        ['1e5', 'x'],
    ],
    ids=str,
)
def test_labels_are_texts(form: str, labels: list[str], tmp_path: Path) -> None:
    """What looks like a number, a truth value or nothing is the name that stands there."""
    data = load(str(write(tmp_path, labels, **FORMS[form])), label_separator='')
    assert labels_of(data) == labels


def test_numbers_in_order(tmp_path: Path) -> None:
    assert load(str(write(tmp_path, ['10', '2', '1']))).class_names == ['1', '2', '10']
    assert load(str(write(tmp_path, ['10', '2', 'x']))).class_names == ['10', '2', 'x']
    assert load(str(write(tmp_path, ['1.0', '2.0', '10.0']))).class_names == ['1', '2', '10']
    datasets.Dataset.from_dict(dict(image=['0.png', '1.png'], label=[3.0, 12.0])).to_parquet(
        tmp_path / 'floats.parquet'
    )
    assert load(str(tmp_path / 'floats.parquet')).class_names == ['3', '12']


def test_accents_in_either_form(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, 'Müll') for form in ('NFC', 'NFD')]
    assert load(str(write(tmp_path, [*forms, 'b']))).class_names == [forms[0], 'b']


def test_no_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='row 1'):
        load(str(write(tmp_path, ['a', '', 'b'])))


# Several labels in one text


def test_lists_as_text(tmp_path: Path) -> None:
    """As pandas writes lists."""
    data = load(str(write(tmp_path, ["['scab', 'rust']", "['scab']", '[]'], separator=';')))
    assert (data.class_names, labels_of(data)) == (['rust', 'scab'], [['rust', 'scab'], ['scab'], []])


@pytest.mark.parametrize('separator', [' ', '|', ',', '+'])
def test_delimited_labels(separator: str, tmp_path: Path) -> None:
    """Where the parts occur alone, too, the run asks; both answers work."""
    both = f'scab{separator}rust'
    file = write(tmp_path, [both, 'scab', 'rust', 'healthy'], separator=';')
    with pytest.raises(DataError, match='--label-separator ""') as error:
        load(str(file))
    option = str(error.value).partition('--label-separator "')[2].partition('"')[0]
    assert labels_of(load(str(file), label_separator=option)) == [['rust', 'scab'], ['scab'], ['rust'], ['healthy']]
    assert labels_of(load(str(file), label_separator='')) == [both, 'scab', 'rust', 'healthy']


def test_names_of_several_words(tmp_path: Path) -> None:
    """Of which no part is a class."""
    assert load(str(write(tmp_path, ['New York', 'York', 'Los Angeles']))).class_names == [
        'Los Angeles',
        'New York',
        'York',
    ]


# The split in a column


@pytest.mark.parametrize('names', [('train', 'val'), ('Training', 'Testing'), ('TRAIN', 'valid')])
def test_split_column(names: tuple[str, str], tmp_path: Path) -> None:
    splits = [names[0], names[1], names[0], names[1], names[0]]
    data = load(str(write(tmp_path, ['a', 'a', 'b', 'b', 'a'], split=splits)))
    assert (len(data.train), len(data.validation), data.has_validation) == (3, 2, True)
    assert [Path(cell['path']).name for _, cell in data.validation.cells()] == ['1.png', '3.png']
    ignored = load(str(write(tmp_path, ['a', 'a', 'b', 'b', 'a'], split=splits)), split_column='')
    assert (len(ignored.train), ignored.has_validation) == (5, False)


def test_a_column_that_may_be_a_split(tmp_path: Path) -> None:
    file = write(tmp_path, ['a', 'a', 'b', 'b'], fold=[0, 1, 0, 1])
    with pytest.raises(DataError, match='--split-column fold, with .*--split-column ""'):
        load(str(file))
    with pytest.raises(DataError, match="'train'.*0, 1"):
        load(str(file), split_column='fold')
    data = load(str(file), split_column='fold', train_split='0', validation_split='1')
    assert (len(data.train), len(data.validation)) == (2, 2)
    assert len(load(str(file), split_column='').train) == 4
    named = write(tmp_path, ['a', 'a', 'b', 'b'], part=['x', 'y', 'x', 'y'])
    data = load(str(named), split_column='part', train_split='x', validation_split='y')
    assert (len(data.train), len(data.validation)) == (2, 2)


def test_a_split_column_of_a_stream(tmp_path: Path) -> None:
    write(tmp_path, ['a', 'b'])
    rows = dict(image=['0.png', '1.png'], label=['a', 'b'], split=['train', 'train'])
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / 'table.parquet')
    with pytest.raises(DataError, match='--streaming.*--split-column ""'):
        load(str(tmp_path / 'table.parquet'), streaming=True)
    assert len(load(str(tmp_path / 'table.parquet'), streaming=True, split_column='').train) == 2
