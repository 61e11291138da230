"""Folders of photos as people have them: the classes that they mean, or a question with an option for each answer."""

import json
import os
import re
import shlex
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from finetuning import SMALL
from PIL import Image
from small_images import photo

import finetune
from xception_hub import images
from xception_hub.data.data_settings import DataSettings
from xception_hub.data.folders import read_folder, understand
from xception_hub.data.known_names import split_of
from xception_hub.data.labelled import Data, load
from xception_hub.errors import DataError
from xception_hub.training.run_data import class_counts

PAGE = (ROOT / 'docs' / 'folders.md').read_text()
TRAINED = (*SMALL, '--recipe', 'probe', '--epochs', '1', '--validation-share', '0.5')
# A tree, the options beside --dataset, and what becomes of it.
TREES = re.findall(r'```text\n(.*?)```\n\n(?:With `(.*?)`: )?(.*?)(?:\n\n|$)', PAGE, re.DOTALL)


def contents() -> str:
    """The table at the head of the page: what people have, and what happens."""
    rows = ['| You have | You add | What happens |', '|---|---|---|']
    for section in re.split(r'^## ', PAGE, flags=re.MULTILINE)[2:]:
        title, _, text = section.partition('\n')
        found = re.findall(
            r'(?:^|\n\n)(?:([^\n`#][^`#]*?):\n\n)?```text\n.*?```\n\n(.*?)(?=\n\n|$)', text.strip(), re.DOTALL
        )
        rows += [f'| **[{title}](#{title.lower().replace(" ", "-")})** | | |'] if found else []
        for sentence, result in found:
            options, rest = re.match(r'(?:With `(.*?)`: )?(.*)', ' '.join(result.split()), re.DOTALL).groups()  # type: ignore[union-attr]
            answers = ' or '.join(f'`{option}`' for option in re.findall(r'`(--.*?)`: ', rest))
            happens = f'a question: {answers}' if answers else rest.rstrip('.')
            rows.append(
                f'| {" ".join(sentence.split()) or "The same"} | {f"`{options}`" if options else ""} | {happens} |'
            )
    return '\n'.join(rows)


def test_the_table_of_contents() -> None:
    """It is printed by `python -c "from test_folders import contents; print(contents())"`."""
    assert contents() in PAGE


def make(root: Path, tree: str) -> Path:
    """A file or a folder for each line; after a colon stands what is in a file, its lines divided by ' / '."""
    random = np.random.default_rng(0)
    for line in tree.strip().splitlines():
        name, _, content = line.partition(': ')
        path = root / name
        if name.endswith('/'):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if re.search(r'\.(jpe?g|png)$', name, re.IGNORECASE):
            left, top = random.integers(0, 350, 2).tolist()
            photo().crop((left, top, left + 64, top + 64)).save(path)
        else:
            path.write_text('\n'.join(content.split(' / ')) or 'text')
    return root


def words(root: Path, options: str) -> list[str]:
    """The words of a command line, DIR for the root; the root is the dataset if no other is named."""
    found = [word.replace('DIR', str(root)) for word in shlex.split(options)]
    return found if '--dataset' in found else ['--dataset', str(root), *found]


def read(root: Path, options: str = '') -> Data:
    """As finetune.py reads it with these options."""
    _, bound, _ = finetune.app.parse_args([*words(root, options), '--output', str(root / 'model')])
    return load(bound.arguments['settings'].data)


def described(data: Data) -> str:
    """The classes, and the splits with their numbers of images."""
    splits = [split for split in (data.train, data.validation) if len(split)]
    sizes = ', '.join(f'{len(split)} in {split.name}' for split in splits)
    return f'the classes {", ".join(data.class_names)}; {sizes}'


def warned(data: Data, options: str) -> set[str]:
    """What a run has to warn of."""
    found, counts = set(), data.train.labels.sum(0) if data.multi_label else np.bincount(data.train.labels)
    if not data.has_validation and 1 in counts:
        found.add('single image')
    if '--repeated-images rows' in options:
        found |= {'in the training and in the validation split', 'several times with different labels'}
    return found


@pytest.mark.parametrize(('tree', 'options', 'result'), TREES)
def test_every_tree_of_the_page(
    tree: str, options: str, result: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trains the classes that it says, or asks a question that names an option for each answer; each answer works."""
    root = make(tmp_path / 'photos', tree)
    answers = [(options, ' '.join(result.split()).rstrip('.'))]
    if result.startswith('A question'):
        with pytest.raises(DataError) as error:
            read(root, options)
        found = re.findall(r'`(--.*?)`: (.*?)(?:; or |\.$)', ' '.join(result.split()))
        assert len(found) > 1
        assert all(
            word.replace('DIR', str(root)) in str(error.value) for option, _ in found for word in shlex.split(option)
        )
        answers = [(f'{options} {option}', expected) for option, expected in found]
    for number, (option, expected) in enumerate(answers):
        data = read(root, option)
        assert described(data) == expected
        output = tmp_path / f'model{number}'
        with warnings.catch_warnings():
            for text in warned(data, option):  # any other is an error
                warnings.filterwarnings('always', f'.*{text}', UserWarning)
            finetune.app.meta([*words(root, option), *TRAINED, '--output', str(output)], result_action='return_value')
        printed = capsys.readouterr()
        assert all(text in printed.err for text in warned(data, option))
        config = json.loads((output / 'config.json').read_text())
        assert config['pretrained_cfg']['label_names'] == data.class_names
        assert f'{len(data.class_names)} classes, ' in printed.out


@pytest.mark.parametrize(
    ('name', 'split'),
    [('train', 'train'), ('Training', 'train'), ('TRAIN', 'train'), ('seg_train', 'train'), ('train2017', 'train'),
     ('train_images', 'train'), ('Training-Set', 'train'), ('val', 'validation'), ('Valid', 'validation'),
     ('validate', 'validation'), ('dev', 'validation'), ('Testing', 'test'), ('test_set', 'test'),
     ('seg_pred', 'prediction'), ('trains', None), ('freight train', None), ('contest', None), ('cats', None),
     ('train_test', None), ('images', None), ('2017', None)],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_links(tmp_path: Path) -> None:
    """A link to a folder is followed, but not in a circle."""
    make(tmp_path / 'elsewhere', 'x/1.png\nx/2.png')
    root = make(tmp_path / 'photos', 'cat/1.png')
    (root / 'dog').symlink_to(tmp_path / 'elsewhere' / 'x')
    (root / 'cat' / 'back').symlink_to(root)
    assert described(read(root)) == 'the classes cat, dog; 3 in train'


def test_files_without_suffix(tmp_path: Path) -> None:
    """Their content decides."""
    root = make(tmp_path / 'photos', 'cat/1.png\ndog/2.png\ncat/README')
    (root / 'dog' / '2.png').rename(root / 'dog' / '2')
    data = read(root)
    assert described(data) == 'the classes cat, dog; 2 in train'
    assert data.notes == ('Left out files: 1 no suffix (no images).',)


def test_every_file_is_accounted_for(tmp_path: Path) -> None:
    root = make(
        tmp_path / 'photos', 'cat/1.png\ndog/2.png\ncat/notes.txt\ndog/a.xml\ndog/b.xml\n3.png\n__MACOSX/cat/._1.png'
    )
    notes = ' '.join(read(root).notes)
    assert '1 images are left out: they lie in' in notes
    assert 'Left out files: 1 .txt (no images), 2 .xml (no images).' in notes


def test_images_beside_the_splits_and_below_a_class(tmp_path: Path) -> None:
    """Neither is silent."""
    root = make(tmp_path / 'photos', 'train/a/1.png\ntrain/a/more/2.png\ntrain/b/1.png\nval/a/3.png\n4.png')
    data = read(root)
    assert described(data) == 'the classes a, b; 3 in train, 1 in val'
    assert any('1 images are left out' in note and 'beside the splits' in note for note in data.notes)
    assert any('count for their class' in note and "'a'" in note for note in data.notes)


@pytest.mark.needs('pillow_heif')
def test_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by pillow-heif; without it the run stops, and names the package."""
    root = make(tmp_path / 'photos', 'cat/1.png\ndog/2.png')
    Image.open(root / 'dog' / '2.png').save(root / 'dog' / '2.heic', quality=90)
    (root / 'dog' / '2.png').unlink()
    data = read(root)
    assert described(data) == 'the classes cat, dog; 2 in train'
    assert images.open_image(root / 'dog' / '2.heic').size == (64, 64)
    monkeypatch.setattr('xception_hub.data.folders.IMAGE_SUFFIXES', images.IMAGE_SUFFIXES - {'.heic'})
    with pytest.raises(DataError, match=r'dog.*1 \.heic.*pip install pillow-heif'):
        read(root)


def test_names_in_either_normal_form(tmp_path: Path) -> None:
    """macOS decomposes accents: the folders look the same, and are one class."""
    composed, decomposed = (unicodedata.normalize(form, 'Müll') for form in ('NFC', 'NFD'))
    root = make(tmp_path / 'photos', f'train/{composed}/1.png\ntrain/b/1.png\nval/{decomposed}/2.png\nval/b/2.png')
    assert described(read(root)) == f'the classes {composed}, b; 2 in train, 2 in val'


@pytest.mark.parametrize(('tree', 'reason'), [('cat/1.txt\ndog/', r'1 \.txt'), ('cat/1.png', '1 class')])
def test_nothing_to_train_on(tree: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read(make(tmp_path / 'photos', tree))


def test_counts(tmp_path: Path) -> None:
    root = make(tmp_path / 'photos', 'train/a/1.png\ntrain/a/2.png\ntrain/b/1.png\nval/a/1.png')
    assert class_counts(read(root)) == '  a: 2 in train, 1 in validation\n  b: 1 in train, 0 in validation'
    many = make(tmp_path / 'many', '\n'.join(f'{i:02}/1.png' for i in range(30)))
    lines = class_counts(read(many)).splitlines()
    assert (len(lines), lines[10], lines[-1]) == (21, '  ... 10 more ...', '  29: 1 in train')


def test_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    root = make(tmp_path / 'photos', 'b/2.png\nb/10.png\na/1.png')
    splits, _ = understand(read_folder(root), DataSettings(dataset=root))
    order = [Path(path).name for paths in splits['train'].values() for path in paths]
    assert order == ['1.png', '10.png', '2.png']
    assert os.listdir(root)
