"""Ways in which people hold photos that were dead ends: they are read, or the error names what to do, and it works."""

from pathlib import Path
from typing import Any

import pytest
from datasets_read import labels_of, load
from small_images import save_pieces

from xception_hub.data.data_settings import DataSettings
from xception_hub.data.labelled import load as load_settings
from xception_hub.data.table import grandparent_split, parent_label, photo_table
from xception_hub.errors import DataError
from xception_hub.images import find_photos


@pytest.fixture(autouse=True)
def _images(tmp_path: Path) -> None:
    save_pieces(tmp_path, 6, 32)


def write(file: Path, text: str, encoding: str = 'utf-8') -> Path:
    file.write_bytes(text.encode(encoding))
    return file


def move(folder: Path, *places: str) -> Path:
    """Photos at these places in a folder."""
    for number, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if not place.endswith('/'):
            (folder / place).write_bytes((folder.parent / f'00{number % 6}.png').read_bytes())
    return folder


# Tables


def test_images_spread_over_folders(tmp_path: Path) -> None:
    move(tmp_path / 'photos', 'a/x.png', 'b/y.png', 'b/z.png')
    file = write(tmp_path / 'photos' / 'table.csv', 'image,label\nx.png,cat\ny,dog\nz.png,dog\n')
    data = load(file)
    assert [Path(cell['path']).parent.name for _, cell in data.train.cells()] == ['a', 'b', 'b']
    assert any('without their folder' in note for note in data.notes)


def test_the_table_that_names_the_images(tmp_path: Path) -> None:
    """In the folder of a competition, not the first by its name; the answer works."""
    root = move(tmp_path / 'competition', 'train_images/x.png', 'train_images/y.png', 'test_images/z.png')
    write(root / 'a_sizes.csv', 'kind,width\nbig,3\n')
    write(root / 'sample_submission.csv', 'image,label\nz.png,0\n')
    write(root / 'train.csv', 'image,label\nx.png,cat\ny.png,dog\n')
    with pytest.raises(DataError, match=rf'--dataset {root}/train.csv\.'):
        load(root)
    assert labels_of(load(root / 'train.csv')) == ['cat', 'dog']


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    import os

    root = move(tmp_path / 'photos', 'a/x.png', 'b/y.png')
    (root / 'a' / os.fsdecode(b'caf\xe9.png')).write_bytes((tmp_path / '000.png').read_bytes())
    with pytest.raises(DataError, match='not UTF-8.*rename'):
        load(root)


# Folders


@pytest.mark.parametrize(
    ('places', 'expected'),
    [
        (['seg_train/seg_train/a/1.png', 'seg_train/seg_train/b/2.png', 'seg_test/seg_test/a/3.png'],
         (['a', 'b'], 2, 1)),
        (['train/images/a/1.png', 'train/images/b/2.png', 'val/images/b/3.png'], (['a', 'b'], 2, 1)),
        (['a/1.png', 'b/2.png', '@eaDir/a/1.png'], (['a', 'b'], 2, 0)),
        (['a/1.png', 'b/2.png', '@eaDir/x/'], (['a', 'b'], 2, 0)),
        (['a/1.png', 'b/2.png', 'b/.ipynb_checkpoints/3.png', 'b/._2.png', 'b/x.png/4.PNG'], (['a', 'b'], 3, 0)),
        (['bus/1.png', 'car/2.png', 'train/3.png'], (['bus', 'car', 'train'], 3, 0)),
        (['valid/1.png', 'invalid/2.png'], (['invalid', 'valid'], 2, 0)),
    ],
)  # fmt: skip
def test_no_question(places: list[str], expected: tuple[Any, ...], tmp_path: Path) -> None:
    """Where one reading makes sense."""
    data = load(move(tmp_path / 'photos', *places))
    assert (data.class_names, len(data.train), len(data.validation)) == expected


def test_a_test_split_in_a_folder(tmp_path: Path) -> None:
    """test/unknown/*.jpg has no classes: the error names the option, and it works."""
    root = move(tmp_path / 'photos', 'train/a/1.png', 'train/a/2.png', 'train/b/3.png', 'test/unknown/4.png')
    with pytest.raises(DataError, match='unknown.*--validation-split ""'):
        load(root)
    assert len(load(root, validation_split='').train) == 3


# A line of Python


def test_a_table_from_python(tmp_path: Path) -> None:
    """An odd layout: the class above the split."""
    root = move(tmp_path / 'photos', 'cat/train/1.png', 'cat/test/2.png', 'dog/train/3.png', 'dog/test/4.png')
    rows = photo_table(find_photos(root), label=grandparent_split, split=parent_label)
    data = load_settings(DataSettings(dataset=rows))
    assert (data.class_names, len(data.train), len(data.validation)) == (['cat', 'dog'], 2, 2)
    with pytest.raises(DataError, match='no table of pandas, Arrow or datasets'):
        load_settings(DataSettings(dataset=3))
