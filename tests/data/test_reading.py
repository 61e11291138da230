"""What the name of a dataset means: repositories as they are cloned, patterns, archives, tables beside images."""

import io
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets_read import load
from PIL import Image

from xception_hub.data.labelled import Data
from xception_hub.errors import DataError, ImageError
from xception_hub.images import open_image

POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n'
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
# Cats and dogs
"""


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def save(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)
    return path


def rows(labels: list[int]) -> datasets.Dataset:
    """Images inside a table."""
    cells = []
    for number in range(len(labels)):
        file = io.BytesIO()
        picture(number).save(file, 'PNG')
        cells.append({'bytes': file.getvalue(), 'path': None})
    kinds = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=['cat', 'dog']))
    return datasets.Dataset.from_dict(dict(image=cells, label=labels), features=kinds)


def described(data: Data) -> tuple[Any, ...]:
    return data.class_names, len(data.train), len(data.validation)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A cloned repository: shards of two splits, of which one is without labels, a card and its illustrations."""
    (tmp_path / 'clone' / 'data').mkdir(parents=True)
    for name, labels in {'train-0-of-2': [0, 1], 'train-1-of-2': [1, 0, 1], 'test-0-of-1': [-1, -1]}.items():
        rows(labels).to_parquet(tmp_path / 'clone' / 'data' / f'{name}.parquet')
    for name in ('assets/logo.png', 'thumbnail.png'):
        save(tmp_path / 'clone' / name)
    (tmp_path / 'clone' / 'README.md').write_text(CARD)
    return tmp_path / 'clone'


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize('what', ['', 'data', 'data/train-*.parquet'])
def test_clone(what: str, streaming: bool, clone: Path) -> None:
    data = load(str(clone / what), streaming=streaming)
    assert described(data) == (['cat', 'dog'], 5, 0)
    assert data.train.labels.tolist() == [0, 1, 1, 0, 1]
    assert [open_image(cell['bytes']).size for _, cell in data.train.cells()] == [(16, 16)] * 5
    if 'train' not in what:
        assert data.notes == ("The split 'test' is left aside: it has no labels.",)


@pytest.mark.parametrize('images', ['inside', 'by path'])
@pytest.mark.parametrize('streaming', [False, True])
def test_each_split_has_its_own_rows(streaming: bool, images: str, tmp_path: Path) -> None:
    """In a folder of tables, and as a validation table, whatever the splits are called."""
    folder = tmp_path / 'tables'
    folder.mkdir()
    for name, labels in {'train': [0, 1, 0], 'validation': [1, 1], 'test': [0, 1, 1, 0]}.items():
        table = rows(labels)
        if images == 'by path':
            paths = [str(save(tmp_path / name / f'{number}.png', number)) for number in range(len(labels))]
            table = datasets.Dataset.from_dict(dict(image=paths, label=[['cat', 'dog'][label] for label in labels]))
        table.to_parquet(folder / f'{name}.parquet')
    for options, expected in (
        (dict(validation_split='test'), [0, 1, 1, 0]),
        (dict(validation_table=str(folder), validation_split='test'), [0, 1, 1, 0]),
        (dict(validation_table=str(folder), validation_split='validation'), [1, 1]),
    ):
        data = load(str(folder), streaming=streaming, **options)  # type: ignore[arg-type]
        assert (data.train.labels.tolist(), data.validation.labels.tolist()) == ([0, 1, 0], expected)
        for split in (data.train, data.validation):
            cells = [cell for _, cell in split.cells()]
            assert len(cells) == len(split)
            if images == 'by path':
                assert {Path(cell['path']).parent.name for cell in cells} <= {'train', 'validation', 'test'}
                folders = [Path(cell['path']).parent.name for cell in cells]
                assert len({*folders}) == 1 and (folders[0] == 'train') == (split is data.train)


def test_options_for_other_datasets(clone: Path, tmp_path: Path) -> None:
    """Are not ignored."""
    with pytest.raises(DataError, match='[Ll]eave out --image-folder'):
        load(str(clone / 'data'), image_folder=tmp_path)
    save(tmp_path / 'photos' / 'a' / '1.png')
    with pytest.raises(DataError, match=r'metadata.csv.*[Ll]eave out --folders metadata'):
        load(str(tmp_path / 'photos'), folders='metadata')
    numbers = datasets.Dataset.from_dict(dict(image=[1, 2], label=['a', 'b']))
    numbers.save_to_disk(tmp_path / 'numbers')
    with pytest.raises(DataError, match='int64'):
        load(str(tmp_path / 'numbers'))


def test_split_without_labels(clone: Path) -> None:
    """Nothing to evaluate on, if it is named."""
    with pytest.raises(DataError, match="'test'.*--validation-split.*predict"):
        load(str(clone), evaluation=True, validation_split='test')


def test_clone_without_a_card(clone: Path) -> None:
    """Illustrations or data: a question, and both answers work."""
    (clone / 'README.md').write_text('# Cats and dogs\n')
    with pytest.raises(DataError, match=f"'assets'.*--folders outer.*--dataset {clone}/data"):
        load(str(clone))
    assert described(load(str(clone), folders='outer', evaluation=True))[0] == ['assets']


def test_broken_card(clone: Path) -> None:
    """Declares nothing."""
    (clone / 'README.md').write_text('---\nconfigs: [\n---\n# Cats\n')
    with pytest.raises(DataError, match="'assets'"):
        load(str(clone))


def test_pointers(tmp_path: Path) -> None:
    """A clone without its large files says so, in the table and in the image."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'train.parquet').write_text(POINTER)
    for name in ('', 'data', 'data/train.parquet'):
        with pytest.raises(DataError, match='train.parquet.*git lfs pull'):
            load(str(tmp_path / name))
    with pytest.raises(ImageError, match='git lfs pull'):
        open_image(tmp_path / 'data' / 'train.parquet')
    with pytest.raises(ImageError, match='git lfs pull'):
        open_image(POINTER.encode())


def test_archives(tmp_path: Path) -> None:
    """Are to be unpacked: `datasets` would drop the labels of some."""
    save(tmp_path / 'a' / '1.png')
    (tmp_path / 'zips').mkdir()
    with zipfile.ZipFile(tmp_path / 'zips' / 'train.zip', 'w') as archive:
        archive.write(tmp_path / 'a' / '1.png', 'a/1.png')
    for name in ('zips', 'zips/train.zip'):
        with pytest.raises(DataError, match='[Uu]npack'):
            load(str(tmp_path / name))


def test_saved_in_folders(tmp_path: Path) -> None:
    rows([0, 1, 0]).save_to_disk(tmp_path / 'train')
    rows([1, 0]).save_to_disk(tmp_path / 'test')
    data = load(str(tmp_path))
    assert (described(data), data.notes) == ((['cat', 'dog'], 3, 2), ())


def test_patterns(tmp_path: Path) -> None:
    (tmp_path / 'a.csv').write_text('image,label\n1.png,a\n')
    (tmp_path / 'b.jsonl').write_text('{"image": "1.png", "label": "b"}\n')
    (tmp_path / 'c.csv').write_text('image,kind\n1.png,a\n')
    for pattern, reason in {
        '*.csv': 'have different columns', '*.*': 'several kinds: .csv, .jsonl', 'x*.csv': 'neither a path here nor'
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=reason):
            load(str(tmp_path / pattern))


def test_the_same_name_in_two_folders(tmp_path: Path) -> None:
    """Of tables that are read together: which image is meant cannot be told."""
    for number, folder in enumerate('xy'):
        save(tmp_path / folder / '1.png', number)
        (tmp_path / folder / 'table.csv').write_text(f'image,label\n1.png,{folder}\n')
    with pytest.raises(DataError, match=f"'1.png'.*{tmp_path}/x/1.png.*{tmp_path}/y/1.png"):
        load(str(tmp_path / '*' / 'table.csv'))


def test_files_that_are_left_aside(tmp_path: Path) -> None:
    save(tmp_path / '1.png')
    save(tmp_path / '2.png')
    folder = tmp_path / 'tables'
    folder.mkdir()
    for name in ('train', 'test', 'sample_submission'):
        (folder / f'{name}.csv').write_text('image,label\n1.png,a\n2.png,b\n')
    data = load(str(folder), image_folder=tmp_path)
    assert (described(data), data.notes) == (
        (['a', 'b'], 2, 2), (f'Left aside in {folder}: sample_submission.csv.',)
    )  # fmt: skip


# Metadata files


def metadata(folder: Path, *lines: str, name: str = 'metadata.jsonl') -> Path:
    for number in range(4):
        save(folder / 'train' / f'{number}.png', number)
    (folder / 'train' / name).write_text('\n'.join(lines))
    return folder


def test_metadata(tmp_path: Path) -> None:
    """An image that is not there is in the scan's list; one that is not named is in a note."""
    labels = [f'{{"file_name": "{number}.png", "label": {number % 2}}}' for number in (2, 0, 1, 7)]
    data = load(str(metadata(tmp_path, *labels)))
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert [Path(cell['path']).name for _, cell in data.train.cells()] == ['2.png', '0.png', '1.png', '7.png']
    assert data.notes[1].startswith('1 images are left out, which these do not name')


def test_metadata_of_other_places(tmp_path: Path) -> None:
    """Whole paths, and one that leads out of the folder."""
    outside = save(tmp_path / 'elsewhere.png')
    names = [str(tmp_path / 'photos' / 'train' / '0.png'), '../../elsewhere.png']
    folder = metadata(
        tmp_path / 'photos', *(f'{{"file_name": "{name}", "label": {i}}}' for i, name in enumerate(names))
    )
    data = load(str(folder))
    assert [Path(cell['path']).resolve() for _, cell in data.train.cells()] == [Path(names[0]), outside]


@pytest.mark.parametrize(
    ('lines', 'reason'),
    [
        (['{"file_name": "0.png", "text": "a cat"}'], 'label column .* file_name, text'),
        (['{"file_name":'], 'metadata.jsonl cannot be read as a table'),
        (['{"file": "0.png", "label": 1}'], r'If a table names the images: --dataset .*/train/metadata.jsonl'),
    ],
)
def test_bad_metadata(lines: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        load(str(metadata(tmp_path, *lines)))


def test_images_without_classes_beside_a_table(tmp_path: Path) -> None:
    """As competitions give them: the table is named, and works."""
    folder = metadata(tmp_path, 'id,label', '0,a', '1,b', '2,a', name='labels.csv')
    (folder / 'train' / 'labels.csv').rename(folder / 'train.csv')
    with pytest.raises(DataError, match=f'--dataset {folder}/train.csv --image-column id'):
        load(str(folder))
    with pytest.raises(DataError, match='id, label.*--image-column'):
        load(str(folder / 'train.csv'))
    for options in ({}, dict(image_folder=folder / 'train')):
        data = load(str(folder / 'train.csv'), image_column='id', **options)
        assert described(data) == (['a', 'b'], 3, 0)
        assert 'without their' in data.notes[0]
