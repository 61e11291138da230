"""Datasets in every form in which people keep them, and the ways in which they are broken."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from datasets_read import labels_of, load
from forked import run_code
from hub_server import Fault, HubServer
from small_images import WORDS, digits, encoded, photo, save_digits

from xception_hub.data.labelled import Data, Split, content
from xception_hub.data.splits import stratified
from xception_hub.errors import DataError, ImageError

TABLES = ('csv', 'tsv', 'json', 'jsonl', 'parquet')
PICTURES = datasets.Features(picture=datasets.Image(), digit=datasets.ClassLabel(names=list(WORDS)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for each class."""
    return save_digits(tmp_path / 'digits')


def write_table(file: Path, rows: list[dict[str, Any]]) -> Path:
    """A table of whatever kind the file's name says."""
    frame = pandas.DataFrame(rows)
    if file.suffix == '.parquet':
        datasets.Dataset.from_list(rows).to_parquet(file)
    elif file.suffix.startswith('.json'):
        frame.to_json(file, orient='records', lines=file.suffix == '.jsonl')
    else:
        frame.to_csv(file, index=False, sep='\t' if file.suffix == '.tsv' else ',')
    return file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Relative paths, and columns that are neither images nor labels."""
    return [
        dict(file_name=str(path.relative_to(folder)), category=path.parent.name, size=32)
        for path in sorted(folder.rglob('*.png'))
    ]


def pictures(per_class: int = 10) -> datasets.Dataset:
    """With images inside, and names in an order of their own."""
    rows = dict(
        picture=[image for images in digits(per_class).values() for image in images],
        digit=[number for number in range(4) for _ in range(per_class)],
    )
    return datasets.Dataset.from_dict(rows, features=PICTURES)


def names_of(split: Split, data: Data) -> list[str]:
    return [data.class_names[label] for label in split.labels]


def digest_without_files(data: Data) -> str:
    """Digest of classes and labels; of the files of a stream there is none."""
    return replace(data, train=replace(data.train, files=''), validation=replace(data.validation, files='')).digest()


def paths_of(split: Split) -> list[Path]:
    return [Path(cell['path']) for _, cell in split.cells()]


# Folders, tables, saved datasets, the Hub


def test_folder(folder: Path) -> None:
    """Names sorted as strings; every file is in one split, under the name of its folder."""
    data = load(str(folder))
    assert data.class_names == sorted(WORDS)
    assert (len(data.train), len(data.validation), data.has_validation, data.multi_label) == (40, 0, False, False)
    data = data.with_validation(0.2, seed=0)
    assert (len(data.train), len(data.validation), data.has_validation) == (32, 8, True)
    assert Counter(names_of(data.validation, data)) == dict.fromkeys(WORDS, 2)
    for split in (data.train, data.validation):
        assert [path.parent.name for path in paths_of(split)] == names_of(split, data)
        assert all(cell['bytes'] is None for _, cell in split.cells())
    assert set(paths_of(data.train)) | set(paths_of(data.validation)) == set(folder.rglob('*.png'))
    assert not set(paths_of(data.train)) & set(paths_of(data.validation))


@pytest.mark.parametrize('kind', TABLES)
def test_table(kind: str, folder: Path) -> None:
    """Paths relative to the table, labels as words, columns found by their names."""
    data = load(str(write_table(folder / f'table.{kind}', rows_of(folder))))
    assert data.class_names == sorted(WORDS)
    assert paths_of(data.train) == sorted(folder.rglob('*.png'))
    assert names_of(data.train, data) == [path.parent.name for path in paths_of(data.train)]


def test_paths_in_a_table(folder: Path) -> None:
    """Absolute ones, addresses, rows without an image; in a column of any name."""
    images = sorted(folder.rglob('*.png'))
    values = [str(images[0].relative_to(folder)), str(images[1]), images[2].as_uri(), None]
    rows = [dict(image='no path', where=value, label=i % 2) for i, value in enumerate(values)]
    split = load(str(write_table(folder / 'table.jsonl', rows)), image_column='where').train
    assert [cell.get('path') for _, cell in split.cells()] == [str(images[0]), str(images[1]), images[2].as_uri(), None]
    for index in range(3):
        assert content(split.cell(index)) == images[index].read_bytes()
    with pytest.raises(ImageError, match='no image in this row'):
        content(split.cell(3))


@pytest.mark.parametrize('streaming', [False, True])
def test_images_in_a_table(streaming: bool, tmp_path: Path) -> None:
    """As `datasets` writes them, as others do, and as bytes alone."""
    expected = [encoded(image) for image in digits()['one']]
    files, binary = [{'bytes': file, 'path': None} for file in expected], datasets.Value('binary')
    for kind, values in (
        (datasets.Image(), files),
        (binary, expected),
        ({'bytes': binary, 'path': datasets.Value('string')}, files),
    ):
        features = datasets.Features(image=kind, label=datasets.Value('int64'))
        rows = datasets.Dataset.from_dict(dict(image=values, label=[0, 1] * 5), features=features)
        rows.to_parquet(tmp_path / 'table.parquet')
        split = load(str(tmp_path / 'table.parquet'), streaming=streaming).train
        assert [content(cell) for _, cell in split.cells()] == expected


def test_saved_to_disk(tmp_path: Path) -> None:
    """With images inside, names in an order of their own, and splits."""
    split = pictures()
    datasets.DatasetDict(train=split, test=split.select(range(0, 40, 4))).save_to_disk(tmp_path / 'saved')
    data = load(str(tmp_path / 'saved'))
    assert data.class_names == list(WORDS)
    assert (len(data.train), len(data.validation)) == (40, 10)
    assert data.train.cell(0)['bytes'].startswith(b'\x89PNG')
    with pytest.raises(DataError, match="'dev'.*train, test"):
        load(str(tmp_path / 'saved'), validation_split='dev')
    with pytest.raises(DataError, match="'image'.*picture, digit"):
        load(str(tmp_path / 'saved'), image_column='image')


# Splits


def test_parts_of_a_split(folder: Path) -> None:
    """Positions count what is left; rows stay those of the dataset."""
    split = load(str(folder)).train
    part = split.select([1, 5, 7]).select(np.array([0, 2]))
    assert (part.source_rows.tolist(), len(part)) == ([1, 7], 2)
    assert part.cell(1) == split.cell(7)
    assert list(part.cells()) == [(0, split.cell(1)), (1, split.cell(7))]
    assert part.labels.tolist() == split.labels[[1, 7]].tolist()
    assert part.cell_name(1, part.cell(1)) == part.cell(1)['path']
    assert part.cell_name(1, {}) == "row 7 of the split 'train'"
    assert list(split.select([]).cells()) == []


def test_parts_of_a_stream(folder: Path) -> None:
    split, stream = (load(str(folder), streaming=streaming).train for streaming in (False, True))
    assert stream.streamed and not split.streamed
    for rows in ([0, 1, 39], [7], [], range(3, 30, 5)):
        assert list(stream.select(rows).cells()) == list(split.select(rows).cells())


# Streams


def hub_parquet(hub: HubServer, name: str, images: list[bytes]) -> str:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['b', 'a']))
    rows = dict(
        image=[{'bytes': image, 'path': f'{i}.png'} for i, image in enumerate(images)],
        label=[i % 2 for i in range(len(images))],
    )
    folder = hub.root / 'datasets' / name / 'data'
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / 'train-00000-of-00001.parquet')
    return name


def hub_folder(hub: HubServer, folder: Path) -> str:
    root = hub.root / 'datasets' / 'org' / 'folder'
    for split, number in (('train', 1), ('test', 2)):
        for word in ('one', 'two'):
            (root / split / word).mkdir(parents=True)
            (root / split / word / '0.png').write_bytes((folder / word / f'{number}.png').read_bytes())
    (root / 'train' / 'one' / 'cut.png').write_bytes((folder / 'one' / '3.png').read_bytes()[:50])
    return 'org/folder'


def hub_addresses(hub: HubServer, folder: Path) -> str:
    """A text whose first rows have no label that would tell the type of the others."""
    root = hub.root / 'datasets' / 'org' / 'addresses'
    root.mkdir(parents=True)
    paths = sorted(folder.rglob('*.png'))[::3]
    write_table(
        root / 'train.jsonl',
        [dict(image=path.as_uri(), labels=[] if i < 2 else [path.parent.name]) for i, path in enumerate(paths)],
    )
    return 'org/addresses'


@pytest.fixture(scope='module')
def everything(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A dataset of each kind."""
    folder = save_digits(tmp_path_factory.mktemp('images') / 'digits', per_class=5)
    root = tmp_path_factory.mktemp('datasets')
    rows = rows_of(folder)
    for row in rows:
        row['file_name'] = str(folder / row['file_name'])
    found = {kind: str(write_table(root / f'table.{kind}', rows)) for kind in TABLES}
    found['lists'] = str(
        write_table(
            root / 'lists.jsonl',
            [dict(image=row['file_name'], labels=[row['category']] * (i % 3 > 0)) for i, row in enumerate(rows)],
        )
    )
    split = pictures(5)
    split.to_parquet(root / 'inside.parquet')
    split.save_to_disk(root / 'saved')
    datasets.DatasetDict(train=split, dev=split.select([3, 9])).save_to_disk(root / 'two')
    found.update(
        folder=str(folder), inside=str(root / 'inside.parquet'), saved=str(root / 'saved'), two=str(root / 'two')
    )
    return dict(
        found,
        **{
            'hub parquet': hub_parquet(hub, 'org/digits', [encoded(image) for image in digits()['two']]),
            'hub folder': hub_folder(hub, folder),
            'hub text': hub_addresses(hub, folder),
        },
    )


@pytest.mark.parametrize(
    'kind', [*TABLES, 'lists', 'folder', 'inside', 'saved', 'two', 'hub parquet', 'hub folder', 'hub text']
)
def test_stream(kind: str, everything: dict[str, str]) -> None:
    """The same labels, names, rows and files, undecoded, as often as they are asked for."""
    data, stream = (load(everything[kind], streaming=streaming) for streaming in (False, True))
    assert digest_without_files(stream) == digest_without_files(data)
    assert (stream.class_names, stream.multi_label, stream.has_validation) == (
        data.class_names,
        data.multi_label,
        data.has_validation,
    )
    for split, streamed in ((data.train, stream.train), (data.validation, stream.validation)):
        assert streamed.streamed and not split.streamed
        np.testing.assert_array_equal(streamed.labels, split.labels)
        np.testing.assert_array_equal(streamed.source_rows, split.source_rows)
        cells = list(split.cells())
        assert list(streamed.cells()) == cells or kind == 'hub folder'
        for _ in range(2):
            assert [(index, content(cell)) for index, cell in streamed.cells()] == [
                (index, content(cell)) for index, cell in cells
            ]


def test_labels_of_a_stream_are_read_alone(hub: HubServer) -> None:
    """Of 5 MB of images hardly any byte is sent before they are asked for."""
    image = photo().resize((400, 300))
    name = hub_parquet(hub, 'org/large', [encoded(image.rotate(i)) for i in range(20)])
    before = hub.sent
    split = load(name, streaming=True).train
    assert split.labels.tolist() == [0, 1] * 10
    assert hub.sent - before < 300_000
    assert sum(len(content(cell)) for _, cell in split.cells()) > 4_000_000


def test_files_of_a_stream_that_can_not_be_had(hub: HubServer, everything: dict[str, str]) -> None:
    """They are named, and the others can be had."""
    hub.faults.update({'train/two': Fault.FORBIDDEN, 'train/one/cut': Fault.NOT_FOUND})
    try:
        (_, there), (_, missing), (_, forbidden) = load(everything['hub folder'], streaming=True).train.cells()
        assert content(there).startswith(b'\x89PNG')
        with pytest.raises(ImageError, match='404'):
            content(missing)
        with pytest.raises(ImageError, match='403'):
            content(forbidden)
    finally:
        hub.faults.clear()


def test_stream_that_breaks_off(tmp_path: Path) -> None:
    """Zeros in the place of images."""
    pictures().to_parquet(tmp_path / 'hole.parquet')
    whole = (tmp_path / 'hole.parquet').read_bytes()
    (tmp_path / 'hole.parquet').write_bytes(whole[:4] + bytes(len(whole) - 5000) + whole[-4996:])
    split = load(str(tmp_path / 'hole.parquet'), streaming=True).train
    assert Counter(split.labels.tolist()) == dict.fromkeys(range(4), 10)
    with pytest.raises(DataError, match="'train'.*row 0"):
        list(split.cells())


# Labels of any type


TEXT, ABC = datasets.Value('string'), datasets.ClassLabel(names=['x', 'd', 'a'])
CELL = {'bytes': encoded(digits()['one'][0]), 'path': None}


def made(feature: Any, *features: Any, **splits: list[Any]) -> datasets.DatasetDict:
    """Splits with these labels; the features of further splits, if they are others."""
    found = datasets.DatasetDict()
    for labels, name, kind in zip(splits.values(), splits, [feature, *(features or [feature] * len(splits))]):
        columns = datasets.Features(image=datasets.Image(decode=False), labels=kind)
        found[name] = datasets.Dataset.from_dict(dict(image=[CELL] * len(labels), labels=labels), features=columns)
    return found


def streams(splits: datasets.DatasetDict, streaming: bool) -> Any:
    return {name: rows.to_iterable_dataset() for name, rows in splits.items()} if streaming else splits


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize(
    ('feature', 'values', 'names', 'expected'),
    [
        (TEXT, [['b'], ['a', 'b'], [], ['c', 'c']], 'abc', ['b', 'a+b', '.', 'c']),
        (datasets.Value('int32'), [[10], [9, 2], []], ['2', '9', '10'], ['10', '2+9', '.']),
        (ABC, [[], [2], [0, 1]], 'xda', ['.', 'a', 'x+d']),
    ],
)
def test_multi_label(feature: Any, values: Any, names: Any, expected: Any, streaming: bool) -> None:
    """An image may have no label, and a label that is given twice counts once."""
    data = load(streams(made(datasets.List(feature), train=values, validation=values[:2]), streaming))
    assert (data.class_names, data.multi_label, data.train.labels.dtype) == ([*names], True, np.int64)
    assert labels_of(data) == expected and data.validation.labels.tolist() == data.train.labels[:2].tolist()


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize(
    ('feature', 'values', 'reason'),
    [
        (TEXT, [['a'], None, ['b']], '1 rows of the split .* have no label, the first of them row 1'),
        (TEXT, [['a'], ['b'], ['b', None]], 'have no label, the first of them row 2'),
        (ABC, [[0], [-1, 1]], 'have no label, the first of them row 1'),
        (datasets.Value('float32'), [[0.5], [1.0]], "The column 'labels' of .* regression"),
        (TEXT, [[], []], r'has 0 class \(none\)'),
        (datasets.List(TEXT), [[['a'], ['b']]], "The column 'labels' of .* holds list instead of"),
    ],
)
def test_broken_lists(feature: Any, values: Any, reason: str, streaming: bool) -> None:
    with pytest.raises(DataError, match=reason):
        load(streams(made(datasets.List(feature), train=values), streaming))


def test_splits_that_differ() -> None:
    """In the names of their classes, in classes that are not trained on, in lists. Names need not be declared twice."""
    cat, dog = (datasets.ClassLabel(names=names) for names in (['cat', 'dog'], ['dog', 'cat']))
    with pytest.raises(DataError, match=r"\['cat', 'dog'\] and \['dog', 'cat'\]"):
        load(made(cat, dog, train=[0, 1], test=[0, 1]))
    with pytest.raises(DataError, match="'labels'.*lists"):
        load(made(datasets.List(TEXT), TEXT, train=[['a'], ['b']], test=['a', 'b']))
    for feature in (TEXT, cat):
        data = load(made(feature, TEXT, train=['cat', 'dog', 'cat'], test=['dog', 'cat']))
        assert (data.train.labels.tolist(), data.validation.labels.tolist()) == ([0, 1, 0], [1, 0])
        with pytest.raises(DataError, match="'test'.*ant, bird"):
            load(made(feature, TEXT, train=['cat', 'dog', 'cat'], test=['dog', 'bird', 'ant']))


@pytest.mark.parametrize('streaming', [False, True])
def test_rows_without_names(streaming: bool) -> None:
    """What is in no file is called by its row; a row without an image has an empty cell."""
    rows = dict(image=[CELL, None, CELL], label=['a', 'b', 'a'])
    features = datasets.Features(image=datasets.Image(), label=TEXT)
    whole = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features))
    split = load(streams(whole, streaming)).train.select([1, 2])
    assert [split.cell_name(index, cell) for index, cell in split.cells()] == [
        f"row {row} of the split 'train'" for row in (1, 2)
    ]
    assert next(split.cells())[1] == {}


def test_images_of_one_name() -> None:
    """Those inside a dataset are different ones, whatever their names are."""
    cells = [{'bytes': encoded(image), 'path': 'image.png'} for image in digits()['one'][:4]]
    features = datasets.Features(image=datasets.Image(), label=TEXT)
    rows: Any = datasets.Dataset.from_dict(dict(image=cells, label=['a', 'a', 'b', 'a']), features=features)
    assert labels_of(load(rows)) == ['a', 'a', 'b', 'a']


# The validation split


# Splits; whether it is an evaluation, and options; what is trained and validated on, or ! and what the error names.
CHOICES = """
train test | evaluation | - test
train test val | evaluation | - val
other | evaluation | - other
train test | evaluation validation_split=train | - train
train extra | evaluation | ! train, extra
train extra | | train -
train extra | train_split=extra | extra -
train extra | train_split=extra validation_split=extra | ! 'extra'.*training and validation
train test | validation_split=dev | ! 'dev'.*train, test
train validation test | | train validation
train val | | train val
train valid | | train valid
train dev | | train dev
"""


@pytest.mark.parametrize('line', CHOICES.strip().splitlines())
def test_which_split(line: str) -> None:
    """A run takes the split that there is, or that is called like one; or has to be told."""
    names, given, expected = (part.strip() for part in line.split('|'))
    options: Any = dict(word.split('=') for word in given.split() if '=' in word)
    splits = made(TEXT, **{name: ['a', 'b'] for name in names.split()})
    if expected.startswith('!'):
        with pytest.raises(DataError, match=expected[2:]):
            load(splits, 'evaluation' in given.split(), **options)
        return
    data = load(splits, 'evaluation' in given.split(), **options)
    assert ' '.join(split.name if len(split) else '-' for split in (data.train, data.validation)) == expected


# The same everywhere


def test_the_same_in_another_process(folder: Path, tmp_path: Path) -> None:
    """Every rank of a distributed training reads and splits the data by itself."""
    code = (
        'from xception_hub.data.data_settings import DataSettings\n'
        'from xception_hub.data.labelled import load\n'
        f'data = load(DataSettings(dataset={str(folder)!r}))\n'
        'print(data.digest(), data.with_validation(0.2, 3).validation.source_rows.tolist())'
    )
    status, other = run_code(code, tmp_path, tmp_path / 'log')
    assert status == 0, other
    data = load(str(folder))
    rows = data.with_validation(0.2, 3).validation.source_rows.tolist()
    assert other.splitlines()[-1] == f'{data.digest()} {rows}'
    assert rows != data.with_validation(0.2, 4).validation.source_rows.tolist()


def test_digest(folder: Path) -> None:
    """Changes with names, labels, their order, the split that they are in, and the names and sizes of the files."""
    data, file = load(folder), folder / 'one' / '0.png'
    others = [
        replace(data, class_names=data.class_names[::-1]),
        replace(data, train=replace(data.train, labels=data.train.labels[::-1].copy())),
        replace(data, train=replace(data.train, labels=data.train.labels[:, None])),
        replace(data, train=data.train.select(range(39))),
        replace(data, train=data.validation, validation=data.train),
        replace(data, train=replace(data.train, name='other')),
    ]
    digests = [data.digest(), *(other.digest() for other in others)]
    assert load(folder).digest() == data.digest()
    file.write_bytes(file.read_bytes() + b' ')
    digests.append(load(folder).digest())
    file.rename(folder / 'one' / '0-.png')
    assert len({*digests, load(folder).digest()}) == 9


@pytest.mark.parametrize('streaming', [False, True])
def test_digest_of_images_in_a_table(tmp_path: Path, streaming: bool) -> None:
    """The files of a stream are not known beforehand."""
    rows = pictures().to_list()
    rows[3]['picture'], rows[4]['picture'] = rows[4]['picture'], rows[3]['picture']
    pictures().to_parquet(tmp_path / 'a.parquet')
    datasets.Dataset.from_list(rows, features=PICTURES).to_parquet(tmp_path / 'b.parquet')
    digests = [load(tmp_path / f'{name}.parquet', streaming=streaming).digest() for name in 'aab']
    assert digests[0] == digests[1] and (digests[2] == digests[0]) == streaming


# Stratified


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


@pytest.mark.parametrize('share', [0.1, 0.3, 0.5])
def test_stratified_with_several_labels(share: float) -> None:
    """About the same share of every class and of what has none, though common classes come with rare ones."""
    generator = np.random.default_rng(0)
    labels = (generator.random((2000, 5)) < [0.9, 0.5, 0.2, 0.05, 0.01]).astype(np.int64)
    rows = stratified(labels, list('abcde'), share, seed=1)
    assert rows == sorted(set(rows)) == stratified(labels, list('abcde'), share, seed=1)
    assert rows != stratified(labels, list('abcde'), share, seed=2)
    inside = np.isin(np.arange(2000), rows)
    for members in (*(labels.T == 1), ~labels.any(1)):
        assert inside[members].sum() == pytest.approx(share * members.sum(), abs=3 + 0.04 * members.sum())
        assert 0 < inside[members].sum() < members.sum()


def test_classes_that_are_missing() -> None:
    """No warning without a reason: of one image, of none, and common classes that come with rarer ones only."""
    labels = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]])
    assert len(stratified(labels, ['animal', 'cat', 'dog'], 0.5, 0)) == 2
    labels = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    with pytest.warns(UserWarning, match='training only') as found:
        stratified(labels, ['animal', 'cat', 'dog', 'rock'], 0.5, 0)
    named = [re.findall('animal|cat|dog|rock', str(warning.message)) for warning in found]
    assert named == [['cat', 'dog'], ['animal']]
    with pytest.warns(UserWarning, match='single image.*b'):
        assert 2 not in stratified([0, 0, 1], ['a', 'b'], 0.5, 0)
    with pytest.warns(UserWarning, match='no image.*b'):
        stratified([0, 0, 2, 2], ['a', 'b', 'c'], 0.5, 0)
    with pytest.raises(DataError, match='single image'):
        stratified([0, 1, 2], ['a', 'b', 'c'], 0.2, 0)
    for share in (0, 1):
        with pytest.raises(DataError, match='must lie between'):
            stratified([0, 1, 0, 1], ['a', 'b'], share, 0)


# What cannot be read


def damaged(folder: Path) -> Iterator[Path]:
    """Files and folders that begin well, or that are something else."""
    pictures().to_parquet(folder / 'whole.parquet')
    whole = (folder / 'whole.parquet').read_bytes()
    (folder / 'cut.parquet').write_bytes(whole[:-100])
    (folder / 'hole.parquet').write_bytes(whole[:-5000] + bytes(4000) + whole[-1000:])
    (folder / 'table.jsonl').write_text('{"image": "a.png", "label": "x"}\n{"image": ')
    (folder / 'bytes.csv').write_bytes(b'image,label\n\xff\xfe\x80,a\n')
    pictures().save_to_disk(folder / 'saved')
    (folder / 'saved' / 'data-00000-of-00001.arrow').unlink()
    return (folder / name for name in ('cut.parquet', 'hole.parquet', 'table.jsonl', 'bytes.csv', 'saved'))


@pytest.mark.parametrize('streaming', [False, True])
def test_damaged(streaming: bool, tmp_path: Path) -> None:
    for path in damaged(tmp_path):
        with pytest.raises(DataError, match=str(path)) as error:
            load(str(path), streaming=streaming)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ('name', 'reason'), [('nobody/nothing', 'neither a path here nor a dataset'), ('table.xls', "ends in '.xls'")]
)
def test_no_dataset(name: str, reason: str, tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / 'table.xls').write_text('')
    with pytest.raises(DataError, match=reason):
        load(str(tmp_path / name) if name.startswith('table') else name)


@pytest.mark.parametrize('streaming', [False, True])
def test_no_rows(tmp_path: Path, streaming: bool) -> None:
    pictures().select([]).to_parquet(tmp_path / 'table.parquet')
    for dataset in (tmp_path / 'table.parquet', made(TEXT, train=['a', 'b'], test=[])):
        with pytest.raises(DataError, match='is empty|cannot be read'):
            load(dataset, streaming=streaming)


# Files


def test_content(tmp_path: Path) -> None:
    """Bytes before a path, a path of this machine or an address."""
    file = tmp_path / 'a b%20.png'
    file.write_bytes(b'123')
    cells = [{'bytes': b'4', 'path': str(file)}, {'bytes': b'', 'path': str(file)}, {'bytes': None, 'path': str(file)}]
    assert [*map(content, cells), content({'path': f'file://{file}'})] == [b'4', b'', b'123', b'123']


def test_no_content(tmp_path: Path) -> None:
    for path, reason in {
        None: 'no image in this row',
        '': 'no image in this row',
        '{}/none/none.png': 'there is no such file',
        'file://{}/none.png': 'there is no such file',
        '{}': 'cannot be read: Is a directory',
        'file://{}': 'cannot be read: Is a directory',
        'what://{}/a.png': 'cannot be read: .*Protocol not known: what',
        '{}/\0.png': 'cannot be read: .*embedded null',
        '{}/' + 300 * 'a': 'cannot be read: File name too long',
    }.items():
        with pytest.raises(ImageError, match=reason):
            content({'bytes': None, 'path': path and path.format(tmp_path)})
