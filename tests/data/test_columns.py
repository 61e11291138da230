"""Which columns hold the images and the labels: told for certain, or asked."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets_read import load
from PIL import Image

from xception_hub.data.labelled import Data
from xception_hub.errors import DataError


@pytest.fixture(autouse=True)
def _images(tmp_path: Path) -> None:
    for number in range(4):
        Image.new('RGB', (8, 8), (number, 0, 0)).save(tmp_path / f'{number}.png')


def read(folder: Path, rows: dict[str, list[Any]], **options: Any) -> Data:
    """A table with four images, as text and with types."""
    file = folder / 'table.csv'
    lines = [','.join(rows), *(','.join(map(str, row)) for row in zip(*rows.values()))]
    file.write_text('\n'.join(lines))
    return load(str(file), **options)


def labels_of(data: Data) -> list[Any]:
    if data.multi_label:
        return [''.join(data.class_names[i] for i, there in enumerate(row) if there) for row in data.train.labels]
    return [data.class_names[label] for label in data.train.labels]


FILES = [f'{number}.png' for number in range(4)]


@pytest.mark.parametrize(
    ('a', 'b', 'expected'),
    [
        ([1, 0, 0, 1], [0, 1, 1, 0], 'abba'), ([1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], 'abba'),
        ([True, False, False, True], [False, True, True, False], 'abba'),
        (['yes', 'no', 'no', 'yes'], [0, 1, 1, 0], 'abba'),
        ([1, -1, 1, -1], [-1, -1, 1, 1], ['a', '', 'ab', 'b']), ([1, 0, 1, 1], [0, 0, 1, 1], ['a', '', 'ab', 'ab']),
    ],
)  # fmt: skip
def test_a_column_for_each_class(a: list[Any], b: list[Any], expected: Any, tmp_path: Path) -> None:
    """One class for each image if each has one; else any number."""
    rows = dict(image=FILES, age=[31, 4, 5, 6], a=a, b=b)
    for data in (read(tmp_path, rows), read(tmp_path, rows, label_column='a,b')):
        assert (data.class_names, labels_of(data)) == (['a', 'b'], list(expected))
        assert 'The classes are the columns a, b' in data.notes[0]


def test_classes_without_an_image(tmp_path: Path) -> None:
    """Are classes all the same, in the order of the columns."""
    data = read(tmp_path, dict(image=FILES, z=[1, 0, 1, 0], never=[0] * 4, a=[0, 1, 1, 0]))
    assert (data.class_names, data.multi_label) == (['z', 'never', 'a'], True)


def test_minus_one_beside_zero(tmp_path: Path) -> None:
    """May be uncertain, as in collections of X-rays: it is not read as no."""
    rows = dict(image=FILES, a=[1, -1, 0, 1], b=[0, 1, 1, 0])
    for options in ({}, dict(label_column='a,b')):
        with pytest.raises(DataError, match='0 and -1 beside 1'):
            read(tmp_path, rows, **options)


def test_columns_that_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'31'.*row 0.*0 or 1"):
        read(tmp_path, dict(image=FILES, age=[31, 4, 5, 6], a=[1, 0, 0, 1]), label_column='age,a')
    with pytest.raises(DataError, match='image, defect.*--label-column'):
        read(tmp_path, dict(image=FILES, defect=[1, 0, 0, 1]))
    data = read(tmp_path, dict(image=FILES, defect=['True', 'False', 'False', 'True']), label_column='defect')
    assert labels_of(data) == ['True', 'False', 'False', 'True']
    with pytest.raises(DataError, match="'c'.*image, a, b"):
        read(tmp_path, dict(image=FILES, a=[1, 0, 0, 1], b=[0, 1, 1, 0]), label_column='a,c')


def test_two_columns_of_labels(tmp_path: Path) -> None:
    """The same in numbers and in words is one; two different things are a question."""
    same = dict(image=FILES, label=[0, 1, 1, 0], class_name=['cat', 'dog', 'dog', 'cat'])
    assert labels_of(read(tmp_path, same)) == ['0', '1', '1', '0']
    other = dict(same, category=['big', 'big', 'small', 'small'])
    finer = dict(same, category=['a', 'b', 'c', 'a'])  # a class for each, and more
    with pytest.raises(DataError, match='--label-column label or --label-column category'):
        read(tmp_path, finer)
    with pytest.raises(DataError, match='--label-column label or --label-column category'):
        read(tmp_path, other)
    assert labels_of(read(tmp_path, other, label_column='category')) == ['big', 'big', 'small', 'small']


@pytest.mark.parametrize(
    'names', [('Image', 'Label'), ('File Name', 'Class'), ('image-path', 'TARGET'), ('id_code', 'diagnosis')]
)
def test_names_of_columns(names: tuple[str, str], tmp_path: Path) -> None:
    assert labels_of(read(tmp_path, {names[0]: FILES, names[1]: list('abba')})) == list('abba')


@pytest.mark.parametrize(
    ('name', 'flags', 'sizes'),
    [
        ('is_val', 'FTFF', (3, 1)), ('is_test', 'FTFF', (3, 1)), ('is_train', 'TTTF', (3, 1)),
        ('is_valid', 'FTFF', None), ('valid', 'TTTF', (4, 0)),
    ],
)  # fmt: skip
def test_flags_of_the_split(name: str, flags: str, sizes: tuple[int, int] | None, tmp_path: Path) -> None:
    """`is_valid` is fastai's, or says that a row is in order: a question. `valid` is no name of a split."""
    rows = {'fname': FILES, 'labels': list('abba'), name: ['True' if flag == 'T' else 'False' for flag in flags]}
    if sizes is None:
        with pytest.raises(DataError, match=f'train, validation.*--split-column {name}.*""'):
            read(tmp_path, rows)
        assert not read(tmp_path, rows, split_column='').has_validation
        sizes, options = (3, 1), dict(split_column=name)
    else:
        options = {}
    data = read(tmp_path, rows, **options)
    assert (len(data.train), len(data.validation)) == sizes


@pytest.mark.parametrize('streaming', [False, True])
def test_booleans_and_classes_in_parquet(streaming: bool, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(dict(image=FILES, label=[True, False, False, True]))
    rows.to_parquet(tmp_path / 'table.parquet')
    assert labels_of(load(str(tmp_path / 'table.parquet'), streaming=streaming)) == ['True', 'False', 'False', 'True']


# Rows without a label


@pytest.mark.parametrize(
    ('labels', 'names'), [(['-1', '1', '1', '-1'], ['-1', '1']), (['-1', 'a', 'b', 'a'], ['-1', 'a', 'b'])]
)
def test_minus_one_as_a_class(labels: list[str], names: list[str], tmp_path: Path) -> None:
    """Beside 1 alone, or beside words, it is one."""
    assert read(tmp_path, dict(image=FILES, label=labels)).class_names == names


def test_rows_without_a_label(tmp_path: Path) -> None:
    rows = dict(image=FILES, label=['a', '', 'b', 'a'])
    with pytest.raises(DataError, match='row 1.*--unlabelled skip'):
        read(tmp_path, rows)
    data = read(tmp_path, rows, unlabelled='skip')
    assert (labels_of(data), data.train.source_rows.tolist()) == (['a', 'b', 'a'], [0, 2, 3])
    assert data.notes == ("1 of 4 rows of the split 'train' are left aside: without a label.",)
    assert [cell['path'][-5:] for _, cell in data.train.cells()] == ['0.png', '2.png', '3.png']
