"""Datasets in every form in which people keep them, and the ways in which they are broken."""
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub_server import HubServer
from PIL import Image
from sklearn.datasets import load_digits

from xception_hub.training.data import DataError, bad_images, load, stratified

WORDS = ('zero', 'one', 'two', 'three')  # so that the order of names isn't that of digits
PER_CLASS = 10


@pytest.fixture(scope='module')
def digits() -> dict[str, list[Image.Image]]:
    """Real handwritten digits of four classes."""
    data = load_digits()
    return {word: [Image.fromarray((image * 15.9).astype(np.uint8)).resize((32, 32))
                   for image in data.images[data.target == number][:PER_CLASS]] for number, word in enumerate(WORDS)}


@pytest.fixture
def folder(digits: dict[str, list[Image.Image]], tmp_path: Path) -> Path:
    """A folder for each class."""
    root = tmp_path / 'digits'
    for word, images in digits.items():
        (root / word).mkdir(parents=True)
        for i, image in enumerate(images):
            image.save(root / word / f'{i}.png')
    return root


def names_of(data: datasets.Dataset, class_names: list[str]) -> list[str]:
    return [class_names[label] for label in data['label']]


def test_folder(folder: Path) -> None:
    """Names sorted as strings; every file is in one split, under the name of its folder."""
    data = load(str(folder))
    assert data.class_names == sorted(WORDS)
    assert (len(data.train), len(data.validation)) == (32, 8)
    assert Counter(names_of(data.validation, data.class_names)) == dict.fromkeys(WORDS, 2)
    for split in (data.train, data.validation):
        for cell, name in zip(split['image'], names_of(split, data.class_names)):
            assert Path(cell['path']).parent.name == name
            assert cell['bytes'] is None
    files = [cell['path'] for split in (data.train, data.validation) for cell in split['image']]
    assert len(set(files)) == 40


def test_folder_with_splits(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / 'splits'
    (root / 'train').parent.mkdir()
    folder.rename(root / 'train')
    for word in WORDS:
        (root / 'val' / word).mkdir(parents=True)
        (root / 'train' / word / '0.png').rename(root / 'val' / word / '0.png')
    data = load(str(root))
    assert (len(data.train), len(data.validation), data.validation_rows) == (36, 4, None)


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'jsonl', 'parquet'])
def test_table(kind: str, folder: Path) -> None:
    """Paths relative to the table, labels as words, columns found by their names."""
    rows = [dict(file_name=str(path.relative_to(folder)), category=path.parent.name, size=32)
            for path in sorted(folder.rglob('*.png'))]
    file = folder / f'table.{kind}'
    if kind == 'jsonl':
        file.write_text('\n'.join(map(json.dumps, rows)))
    elif kind == 'parquet':
        datasets.Dataset.from_list(rows).to_parquet(file)
    else:
        separator = ',' if kind == 'csv' else '\t'
        lines = [rows[0], *(row.values() for row in rows)]
        file.write_text('\n'.join(separator.join(map(str, line)) for line in lines))
    data = load(str(file))
    assert data.class_names == sorted(WORDS)
    assert names_of(data.train, data.class_names) == [Path(cell['path']).parent.name for cell in data.train['image']]
    assert list(bad_images(data.train)) == []


def test_saved_to_disk(digits: dict[str, list[Image.Image]], tmp_path: Path) -> None:
    """With images inside, names in an order of their own, and splits."""
    features = datasets.Features(picture=datasets.Image(), digit=datasets.ClassLabel(names=list(WORDS)))
    rows = dict(picture=[image for images in digits.values() for image in images],
                digit=[number for number in range(4) for _ in range(PER_CLASS)])
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=split, test=split.select(range(0, 40, 4))).save_to_disk(tmp_path / 'saved')
    data = load(str(tmp_path / 'saved'))
    assert data.class_names == list(WORDS)
    assert (len(data.train), len(data.validation)) == (40, 10)
    assert data.train[0]['image']['bytes'].startswith(b'\x89PNG')
    with pytest.raises(DataError, match=r"no split 'dev', but train, test"):
        load(str(tmp_path / 'saved'), validation_split='dev')
    with pytest.raises(DataError, match=r"no column 'image', but picture, digit"):
        load(str(tmp_path / 'saved'), image_column='image')


def test_numbers_are_sorted_as_numbers(folder: Path) -> None:
    rows = [(path.relative_to(folder), number) for number, path in zip([9, 10, 2] * 10, sorted(folder.rglob('*.png')))]
    (folder / 'table.csv').write_text('image,label\n' + '\n'.join(f'{path},{number}' for path, number in rows))
    assert load(str(folder / 'table.csv')).class_names == ['2', '9', '10']


def test_split_is_the_same_everywhere(folder: Path) -> None:
    """In another process, too: every rank of a distributed training makes its own."""
    code = f'from xception_hub.training.data import load; print(load({str(folder)!r}, seed=3).validation_rows)'
    other = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, check=True).stdout
    rows = load(str(folder), seed=3).validation_rows
    assert rows is not None
    assert other.splitlines()[-1] == str(rows)
    assert rows != load(str(folder), seed=4).validation_rows


@pytest.mark.parametrize('share', [0.01, 0.2, 0.5, 0.99])
def test_stratified(share: float) -> None:
    """Each class of more than one member is in both parts, whatever the share."""
    labels = np.repeat([0, 1, 2], [2, 10, 500])
    rows = stratified(labels.tolist(), ['a', 'b', 'c'], share, seed=0)
    assert rows == sorted(set(rows))
    for label in range(3):
        members = np.flatnonzero(labels == label)
        inside = np.isin(members, rows).sum()
        assert 1 <= inside < len(members)
        assert inside == pytest.approx(share * len(members), abs=1)


def test_class_of_one(folder: Path) -> None:
    for path in sorted((folder / 'two').iterdir())[1:]:
        path.unlink()
    with pytest.warns(UserWarning, match='1 classes have a single image, which is trained on and never judged: two'):
        data = load(str(folder))
    assert 'two' in names_of(data.train, data.class_names)
    assert 'two' not in names_of(data.validation, data.class_names)


@pytest.mark.parametrize(('share', 'reason'), [(0, 'must lie between'), (1, 'must lie between')])
def test_bad_share(share: float, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        stratified([0, 1, 0, 1], ['a', 'b'], share, 0)


def test_one_class(folder: Path) -> None:
    for word in WORDS[1:]:
        (folder / word).rename(folder.parent / word)
    with pytest.raises(DataError, match=r'has 1 class \(zero\)'):
        load(str(folder))


def test_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='has no folders'):
        load(str(tmp_path))


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / 'a').mkdir()
    with pytest.raises(DataError, match="The split 'train' of .* is empty"):
        load(str(tmp_path))


@pytest.mark.parametrize(('table', 'reason'), [
    ('image,label\na.png,cat\nb.png,\nc.png,dog\n', '1 rows of the split .* have no label, the first of them row 1'),
    ('photo,kind\na.png,cat\n', "No column of .* can be told to be the image: it has photo, kind"),
    ('image,x\na.png,cat\n', "No column of .* can be told to be the label: it has image, x"),
    ('image,label\na.png,0.5\nb.png,1.5\n', "The column 'label' of .* holds float instead of class names"),
])
def test_broken_table(table: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / 'table.csv').write_text(table)
    with pytest.raises(DataError, match=reason):
        load(str(tmp_path / 'table.csv'))


def test_names_that_differ_between_splits(digits: dict[str, list[Image.Image]], tmp_path: Path) -> None:
    def split(names: list[str]) -> datasets.Dataset:
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        return datasets.Dataset.from_dict(dict(image=digits['zero'][:2], label=[0, 1]), features=features)

    datasets.DatasetDict(train=split(['cat', 'dog']), test=split(['dog', 'cat'])).save_to_disk(tmp_path / 'saved')
    with pytest.raises(DataError, match=r"differently: train: \['cat', 'dog'\]; test: \['dog', 'cat'\]"):
        load(str(tmp_path / 'saved'))


@pytest.mark.parametrize(('name', 'reason'), [
    ('nobody/nothing', 'neither a path here nor a dataset that can be had from the Hub'),
    ('table.xls', "ends in '.xls'"),
])
def test_no_dataset(name: str, reason: str, tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / 'table.xls').write_text('')
    with pytest.raises(DataError, match=reason):
        load(str(tmp_path / name) if name.startswith('table') else name)


def test_bad_images_are_named(folder: Path) -> None:
    """One cut off, one that is no image, one that is gone."""
    data = load(str(folder))
    paths = [Path(cell['path']) for cell in data.train['image']]
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    paths[5].write_text('<html>')
    paths[7].unlink()
    found = list(bad_images(data.train))
    assert [(bad.row, bad.name) for bad in found] == [(i, str(paths[i])) for i in (3, 5, 7)]
    assert [bad.reason.partition(':')[0] for bad in found] == [
        'damaged', 'no image of a known format', 'there is no such file']
