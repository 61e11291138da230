"""Ways in which people hold photos that were dead ends: they are read, or the error names what to do, and it works."""

import base64
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import timm
import torch
from conftest import ROOT
from datasets_read import labels_of, load
from finetuning import SMALL
from forked import run_code
from PIL import Image
from small_images import save_digits, save_pieces

import finetune
from xception_hub.data.bad_images import scan
from xception_hub.data.data_settings import DataSettings
from xception_hub.data.labelled import content
from xception_hub.data.labelled import load as load_settings
from xception_hub.data.table import grandparent_split, parent_label, photo_table
from xception_hub.errors import DataError
from xception_hub.images import find_photos
from xception_hub.inference import preprocess
from xception_hub.inference.snippets import snippet

COCO = {
    'images': [{'id': n, 'file_name': f'00{n}.png'} for n in range(4)],
    'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
    'annotations': [{'image_id': n, 'category_id': 1 + n % 2} for n in range(4)],
}
VOC = '<annotation><filename>{0}.png</filename><object><name>cat</name></object></annotation>'


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
    root = move(tmp_path / 'photos', 'a/x.png', 'b/y.png')
    (root / 'a' / os.fsdecode(b'caf\xe9.png')).write_bytes((tmp_path / '000.png').read_bytes())
    with pytest.raises(DataError, match='not UTF-8.*rename'):
        load(root)


# Folders


@pytest.mark.parametrize(
    ('places', 'expected'),
    [
        (['train/images/a/1.png', 'train/images/b/2.png', 'val/images/b/3.png'], (['a', 'b'], 2, 1)),
        (['a/1.png', 'b/2.png', '@eaDir/x/'], (['a', 'b'], 2, 0)),
        (['a/1.png', 'b/2.png', 'b/.ipynb_checkpoints/3.png', 'b/._2.png', 'b/x.png/4.PNG'], (['a', 'b'], 3, 0)),
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


def test_a_table_in_each_split(tmp_path: Path) -> None:
    """As Roboflow exports labels of images; the options that the error names work together."""
    root = move(tmp_path / 'export', 'train/1.png', 'train/2.png', 'valid/3.png')
    write(root / 'train' / '_classes.csv', 'filename, cat, dog\n1.png, 1, 0\n2.png, 1, 1\n')
    write(root / 'valid' / '_classes.csv', 'filename, cat, dog\n3.png, 0, 1\n')
    tables = [str(root / split / '_classes.csv') for split in ('train', 'valid')]
    with pytest.raises(DataError, match=rf'--dataset {tables[0]} --validation-table {tables[1]}\.'):
        load(root)
    data = load(tables[0], validation_table=tables[1])
    assert labels_of(data) == ['cat', 'cat+dog'] and data.validation.labels.tolist() == [[0, 1]]


# A line of Python


def test_a_table_from_python(tmp_path: Path) -> None:
    """An odd layout: the class above the split."""
    root = move(tmp_path / 'photos', 'cat/train/1.png', 'cat/test/2.png', 'dog/train/3.png', 'dog/test/4.png')
    rows = photo_table(find_photos(root), label=grandparent_split, split=parent_label)
    data = load_settings(DataSettings(dataset=rows))
    assert (data.class_names, len(data.train), len(data.validation)) == (['cat', 'dog'], 2, 2)
    with pytest.raises(DataError, match='no table of pandas, Arrow or datasets'):
        load_settings(DataSettings(dataset=3))


# Cells


@pytest.mark.parametrize('address', ['', 'data:image/png;base64,'])
def test_images_in_base64(address: str, tmp_path: Path) -> None:
    """As spreadsheets and services hold them; a damaged one is a bad image, an empty cell none."""
    files = [(tmp_path / f'00{number}.png').read_bytes() for number in range(3)]
    cells = [address + base64.b64encode(file).decode() for file in files]
    rows = [['image', 'label'], *zip([*cells, cells[0][:-9], ''], 'abaab')]
    file = write(tmp_path / 'table.csv', '\n'.join('\t'.join(row) for row in rows))
    data = load(file)
    assert [content(data.train.cell(number)) for number in range(3)] == files and labels_of(data) == list('abaab')
    assert [bad.index for bad in scan(data.train).bad] == [3, 4]
    assert data.digest() != load(write(tmp_path / 'table.csv', file.read_text().replace(cells[1], cells[2]))).digest()


def test_half_grades_are_classes_by_name(tmp_path: Path) -> None:
    """The way out that the error for values names; whole numbers beside halves are no classes, too."""
    for grades in (['0.5', '1.0', '1.5'], ['0', '0.5', '1']):
        rows = [f'00{number}.png,{grade}' for number, grade in enumerate(grades)]
        with pytest.raises(DataError, match='regression.*RegressionBlock.*"grade 0.5"'):
            load(write(tmp_path / 'table.csv', '\n'.join(['image,label', *rows])))
        named = '\n'.join(['image,label', *(row.replace(',', ',grade ') for row in rows)])
        assert labels_of(load(write(tmp_path / 'named.csv', named))) == [f'grade {grade}' for grade in grades]


@pytest.mark.needs('openpyxl')
def test_a_spreadsheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells are texts: 001 is a class of its own. Without openpyxl the error names it."""
    rows = pandas.DataFrame({'image': ['000.png', '001.png', '002.png'], 'label': ['001', '1', '001']})
    rows.to_excel(tmp_path / 'table.xlsx', index=False)
    assert labels_of(load(tmp_path / 'table.xlsx')) == ['001', '1', '001']
    monkeypatch.setitem(sys.modules, 'openpyxl', None)
    with pytest.raises(DataError, match='openpyxl'):
        load(tmp_path / 'table.xlsx')


def test_a_webdataset_by_its_files(tmp_path: Path) -> None:
    """The error names the folder, and the folder works."""
    (tmp_path / 'wds').mkdir()
    with tarfile.open(tmp_path / 'wds' / 'train-0.tar', 'w') as archive:
        for number in range(4):
            archive.add(tmp_path / f'00{number}.png', f'{number}.png')
            archive.add(write(tmp_path / 'label', str(number % 2)), f'{number}.cls')
    with pytest.raises(DataError, match=f'--dataset {tmp_path}/wds\\.'):
        load(tmp_path / 'wds' / '*.tar')
    assert load(tmp_path / 'wds').train.labels.tolist() == [0, 1, 0, 1]


def test_the_table_of_another_split(tmp_path: Path) -> None:
    """train.csv notes that val.csv lies beside it, and how to use it."""
    write(tmp_path / 'val.csv', 'image,label\n002.png,a\n')
    train = write(tmp_path / 'train.csv', 'image,label\n000.png,a\n001.png,b\n')
    (note,) = load(train).notes
    assert note.endswith(f'--validation-table {tmp_path}/val.csv.')
    assert len(load(train, validation_table=str(tmp_path / 'val.csv')).validation) == 1


# Exports of objects


OBJECTS = {
    'VOC': 'JPEGImages/{0}.png Annotations/{0}.xml ImageSets/Main/cat_train.txt',
    'YOLO': 'images/train/{0}.png labels/train/{0}.txt images/val/v{0}.png labels/val/v{0}.txt data.yaml',
    'Roboflow': 'train/images/{0}.png train/labels/{0}.txt valid/images/v{0}.png valid/labels/v{0}.txt',
    'CVAT': 'images/{0}.png annotations.xml',
    'YOLO of CVAT': 'obj_train_data/{0}.png obj_train_data/{0}.txt obj.names train.txt',
    'LabelImg': '{0}.png {0}.xml',
}


@pytest.mark.parametrize('tool', OBJECTS)
def test_objects_in_other_formats(tool: str, tmp_path: Path) -> None:
    """The error names COCO, which these tools export, and that works."""
    root = move(tmp_path / 'export', *(file.format(n) for n in range(4) for file in OBJECTS[tool].split()))
    for file in root.rglob('*.*'):
        if file.suffix != '.png':
            file.write_text(VOC.format(file.stem) if file.suffix == '.xml' else '0 0.5 0.5 1 1')
    with pytest.raises(DataError, match=r'VOC.*COCO.*\.json'):
        load(root)
    file = write(tmp_path / 'coco.json', json.dumps(COCO))
    assert labels_of(load(file)) == ['cat', 'dog', 'cat', 'dog']


def test_label_studio(tmp_path: Path) -> None:
    """Its JSON has every annotator's work; CSV and JSON-MIN have a row for each image."""
    rows = [('/data/upload/1/0a1b-000.png', 'cat'), ('/data/upload/1/2c3d-001.png', 'dog')]
    for path, _ in rows:
        move(tmp_path / 'photos', Path(path).name)
    tasks = [
        dict(id=1, annotations=[dict(result=[dict(value=dict(choices=[c]))])], data=dict(image=i)) for i, c in rows
    ]
    with pytest.raises(DataError, match='Label Studio.*CSV or JSON-MIN'):
        load(write(tmp_path / 'project.json', json.dumps(tasks)))
    small = [dict(image=path, id=1, choice=choice, annotator=1) for path, choice in rows]
    lines = ['image,id,choice,annotator', *(f'{path},1,{choice},1' for path, choice in rows)]
    for file in (
        write(tmp_path / 'project-min.json', json.dumps(small)),
        write(tmp_path / 'project.csv', '\n'.join(lines)),
    ):
        assert labels_of(load(file, image_folder=tmp_path / 'photos')) == ['cat', 'dog']


# Lists of a split


@pytest.mark.parametrize('name', ['Food-101', 'CUB'])
def test_lists_of_a_split(name: str, tmp_path: Path) -> None:
    """The lines of Python on the page, as they stand there."""
    page = (ROOT / 'docs' / 'folders.md').read_text()
    code = re.findall(rf'```py\n# {name}.*?\n(.*?)```', page, re.DOTALL)[0]
    if name == 'Food-101':
        root = move(tmp_path / 'food-101', 'images/pie/1.jpg', 'images/pie/2.jpg', 'images/soup/3.jpg', 'meta/')
        (root / 'meta').mkdir()
        write(root / 'meta' / 'test.txt', 'pie/2\n')
        classes = ['pie', 'soup']
    else:
        root = move(tmp_path / 'CUB_200_2011', *(f'images/00{n % 2 + 1}.Bird/{n}.jpg' for n in range(3)))
        write(root / 'images.txt', ''.join(f'{n + 1} 00{n % 2 + 1}.Bird/{n}.jpg\n' for n in range(3)))
        write(root / 'train_test_split.txt', '1 1\n2 1\n3 0\n')
        classes = ['001.Bird', '002.Bird']
    code += 'print(data.class_names, len(data.train), len(data.validation))'
    status, printed = run_code(code, tmp_path, tmp_path / 'log')
    assert (status, printed.strip().splitlines()[-1]) == (0, f'{classes} 2 1')


# Going on


def test_going_on_after_the_data_were_moved(tmp_path: Path) -> None:
    """The same images at another place, by the settings of the run and the new place; other images are refused."""
    photos, output = save_digits(tmp_path / 'photos', 4), tmp_path / 'model'

    def run(*words: Any) -> None:
        finetune.app.meta([str(word) for word in words], result_action='return_value')

    run(*SMALL, '--recipe', 'full', '--epochs', 1, '--dataset', photos, '--output', output)
    (output / 'metrics.json').unlink()  # it is not finished
    photos.rename(tmp_path / 'elsewhere')
    again = ('--config', output / 'settings.yaml', '--dataset', tmp_path / 'elsewhere')
    run(*again)
    assert (output / 'metrics.json').is_file()
    (output / 'metrics.json').unlink()
    next((tmp_path / 'elsewhere' / 'one').iterdir()).unlink()
    with pytest.raises(SystemExit, match='has changed since'):
        run(*again)


# The exported snippet


def test_the_snippet_for_grey_images(tmp_path: Path) -> None:
    """Prepares an image of 12 bits as the package does."""

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            level = x.mean((2, 3))[:, :1]
            return (torch.cat([-level, level], 1),)

    preprocessing = timm.data.resolve_data_config({'input_size': (3, 16, 16), 'crop_pct': 1.0})
    report = dict(
        format='torch-export',
        precision='fp32',
        class_names=['dark', 'light'],
        final_activation='softmax',
        grey_maximum=4095,
        preprocessing=preprocessing,
    )
    torch.export.save(torch.export.export(Mean().eval(), (torch.zeros(1, 3, 16, 16),)), tmp_path / 'model.pt2')
    (tmp_path / 'export.json').write_text(json.dumps(report))
    (tmp_path / preprocess.FILE).write_text(preprocess.code())
    for level, name in ((1000, 'dark'), (3500, 'light')):
        Image.fromarray(np.full((20, 20), level, np.uint16)).save(tmp_path / 'photo.jpg', 'PNG')
        status, printed = run_code(snippet(report) or '', tmp_path, tmp_path / f'{name}.log')
        assert (status, printed.strip()) == (0, name)
