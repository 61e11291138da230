"""What would be silently wrong: leaks into validation, labels that mean something else, another preparation."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from datasets_read import load
from finetuning import SMALL
from hub_server import TOKEN, Fault, HubServer
from PIL import Image
from random_model import random_model
from small_images import WORDS, save_digits, save_pieces

import finetune
import xception_hub
from xception_hub.data.bad_images import copies, scan
from xception_hub.data.labelled import Data, Split
from xception_hub.data.seen import Seen
from xception_hub.data.splits import stratified
from xception_hub.directory.upload import publish
from xception_hub.directory.write import write_model
from xception_hub.errors import DataError, ModelError
from xception_hub.inference.predictor import Predictor

QUICK = (*SMALL, '--recipe', 'full', '--epochs', '1')


@pytest.fixture(autouse=True)
def _images(tmp_path: Path) -> None:
    save_pieces(tmp_path, 12, 32)


def table(folder: Path, **columns: list[Any]) -> Path:
    """A table of the first images, with further columns."""
    count = len(next(iter(columns.values())))
    file = folder / 'table.csv'
    rows = pandas.DataFrame({'image': [f'{number:03}.png' for number in range(count)], **columns})
    rows.to_csv(file, index=False)
    return file


def run(*arguments: Any) -> None:
    finetune.app.meta([str(argument) for argument in arguments], result_action='return_value')


# Going on with new photos


def test_images_that_were_trained_on_are_not_measured_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on keeps the validation images of the one before; a share of the new ones joins them."""
    photos = save_digits(tmp_path / 'photos', 9)
    late = [photos / word / f'{number}.png' for word in ('one', 'two', 'zero') for number in (6, 7, 8)]
    for path in late:
        path.rename(tmp_path / f'{path.parent.name}-{path.name}')
    first, second, third = (tmp_path / f'model{number}' for number in range(3))
    run(*QUICK, '--dataset', photos, '--output', first)
    before = Seen.of_model(f'local-dir:{first}')
    for path in late:
        (tmp_path / f'{path.parent.name}-{path.name}').rename(path)
    going_on = ('--recipe', 'full', '--epochs', '1', '--image-size', 32)
    run('--model', first, *going_on, '--dataset', photos, '--output', second)
    assert 'has seen 27 of the images before' in capsys.readouterr().out
    after = Seen.of_model(f'local-dir:{second}')
    assert before.held_out <= after.held_out and not after.held_out & before.trained
    assert len(after.held_out) > len(before.held_out) and len(after.trained | after.held_out) == 36
    rows = json.loads((second / 'data.json').read_text())['validation_rows']
    digests = scan(load(photos).train).digests
    assert {digests[row][:8] for row in rows} == after.held_out
    # a third time, with nothing new: the same validation images
    run('--model', f'local-dir:{second}', *going_on, '--dataset', photos, '--output', third)
    assert Seen.of_model(f'local-dir:{third}') == after


@pytest.mark.filterwarnings('default:The model was trained on')
def test_a_validation_split_that_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its images are left out, with a warning; where it is only measured, the warning stays."""
    photos = save_digits(tmp_path / 'photos', 6)
    run(*QUICK, '--dataset', photos, '--output', tmp_path / 'first')
    splits, before = tmp_path / 'splits', Seen.of_model(f'local-dir:{tmp_path}/first')
    for word in ('zero', 'one', 'two', 'three'):
        (splits / 'val' / word).mkdir(parents=True)
        (splits / 'train' / word).mkdir(parents=True)
        for path in sorted((photos / word).iterdir()):
            is_held = hashlib.sha256(path.read_bytes()).digest()[:8] in before.held_out
            split = 'val' if is_held or int(path.stem) < 3 else 'train'
            (splits / split / word / path.name).write_bytes(path.read_bytes())
    model = ('--model', tmp_path / 'first', '--image-size', 32, '--dataset', splits)
    run(*model, '--recipe', 'full', '--epochs', '1', '--output', tmp_path / 'second')
    assert 'They are left out of it' in capsys.readouterr().err
    held = Seen.of_model(f'local-dir:{tmp_path}/second').held_out
    assert held == before.held_out
    run(*model, '--eval-only', '--output', tmp_path / 'evaluation')
    assert 'better than the model is' in capsys.readouterr().err


@pytest.mark.filterwarnings('default:The model was trained on')
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_a_model_of_the_hub(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is published with it, and downloaded; where the download fails, a warning says so."""
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    photos, small, model = save_digits(tmp_path / 'photos', 4), tmp_path / 'small', tmp_path / 'model'
    small.mkdir()
    network = random_model(num_classes=4, width_multiplier=0.1875)
    write_model(small, network, dict(label_names=sorted(WORDS)), dict(width_multiplier=0.1875))
    going_on = ('--recipe', 'full', '--epochs', 1, '--image-size', 71)
    run('--model', small, *going_on, '--dataset', photos, '--output', model)
    publish(model, 'org/seen')
    run('--eval-only', '--model', 'hf-hub:org/seen', '--dataset', photos, '--output', tmp_path / 'evaluation')
    assert 'better than the model is' in capsys.readouterr().err
    assert Seen.of_model('hf-hub:org/seen') == Seen.of_model(f'local-dir:{model}') != Seen()
    (model / 'images.json').unlink()
    publish(model, 'org/seen')  # removes the earlier one
    assert Seen.of_model('hf-hub:org/seen') == Seen()
    hub.faults['org/closed'] = Fault.FORBIDDEN
    try:
        with pytest.warns(UserWarning, match='hf-hub:org/closed was trained on are unknown'):
            assert Seen.of_model('hf-hub:org/closed') == Seen()
    finally:
        hub.faults.clear()


def test_nothing_new_to_measure_on(tmp_path: Path) -> None:
    """All images were trained on: an error with ways out instead of a figure."""
    data = load(save_digits(tmp_path / 'photos', 3))
    found = scan(data.train)
    train = data.train
    object.__setattr__(train, 'digests', np.array([found.digests[i] for i in range(len(train))], object))
    with pytest.raises(DataError, match='--validation-table'):
        Seen(frozenset(d[:8] for d in found.digests.values())).share(data, 0.2, 0)


def test_new_images_of_groups_that_the_model_has_seen() -> None:
    """They join their group: an image of a patient whose others the model was trained on measures nothing."""
    names, nothing = np.array([bytes([i]) * 8 for i in range(40)], object), np.empty(0, np.int64)
    groups = np.repeat(np.arange(8), 5)
    labels = np.tile([0, 1], 20)
    train = Split('train', None, np.arange(40), labels, groups=groups, digests=names, pixels=names)
    data = Data(train, train.select(nothing), ['a', 'b'], False, False)
    seen = Seen(trained=frozenset(names[[0, 5, 10]]), held_out=frozenset(names[[1, 15]]))
    divided = seen.share(data, 0.5, 0)
    on_sides = {*divided.train.groups.tolist()}, {*divided.validation.groups.tolist()}
    assert not on_sides[0] & on_sides[1] and {0, 1, 2} < on_sides[0] and 3 in on_sides[1]
    assert len(on_sides[1]) > 1 and 'groups: 5 that were held out' in divided.notes[0]
    with pytest.raises(DataError, match='trained on all groups'):
        Seen(frozenset(names[::5])).share(data, 0.5, 0)


def test_a_damaged_record(tmp_path: Path) -> None:
    (tmp_path / 'images.json').write_text('{"trained": 3}')
    with pytest.raises(DataError, match='images.json is damaged'):
        Seen.of_model(f'local-dir:{tmp_path}')


# Groups and copies


def test_shares_of_groups() -> None:
    """About the same share of every class, in multi-label too, and of images without a class."""
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 100, 2000)
    labels = generator.integers(0, 3, 2000)
    for values in (labels, np.eye(3, dtype=np.int64)[labels][:, :2]):
        rows = stratified(values, list('abc'), 0.2, 1, groups)
        assert (
            rows == stratified(values, list('abc'), 0.2, 1, groups) != stratified(values, list('abc'), 0.2, 2, groups)
        )
        inside = np.isin(np.arange(2000), rows)
        assert not {*groups[inside]} & {*groups[~inside]}
        assert all(inside[labels == c].mean() == pytest.approx(0.2, abs=0.05) for c in range(3))


def scanned(data: Data) -> Data:
    for split in (data.train, data.validation):
        found = scan(split)
        object.__setattr__(split, 'pixels', np.array([found.pixels[i] for i in range(len(split))] or [b''], object))
    return data


def test_copies_are_named(tmp_path: Path) -> None:
    """The same pixels in another file; on both sides, or under two labels."""
    Image.open(tmp_path / '000.png').save(tmp_path / '011.png', compress_level=0)
    Image.open(tmp_path / '001.png').save(tmp_path / '002.png', compress_level=0)
    file = table(tmp_path, label=list('xxyyxyxyxyxx'), split=['train'] * 8 + ['val'] * 4)
    both, unlike = copies(scanned(load(file)))
    assert '1 images' in both and '000.png' in both and '011.png' in both
    assert '1 images' in unlike and '001.png' in unlike and '002.png' in unlike and 'different labels' in unlike


# The model's own


@pytest.mark.filterwarnings('default:The model was trained on')
def test_grey_images_of_twelve_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is white travels with the model: predictions, evaluations and explanations open images alike."""
    photos, model = tmp_path / 'photos', tmp_path / 'model'
    for name, level in (('dark', 1000), ('light', 3500)):
        (photos / name).mkdir(parents=True)
        for number in range(6):
            grey = np.random.default_rng(number).integers(level - 200, level + 200, (40, 40)).astype(np.uint16)
            Image.fromarray(grey).save(photos / name / f'{number}.png')
    run(*QUICK, '--dataset', photos, '--grey-maximum', 4095, '--output', model)
    assert json.loads((model / 'config.json').read_text())['grey_maximum'] == 4095
    assert "open_image('photo.jpg', grey_maximum=4095)" in (model / 'report.html').read_text().replace('&#39;', "'")
    predictor = Predictor(model, device='cpu')
    files = sorted(photos.rglob('*.png'))
    (row,) = predictor.predict(files[:1])
    (expected,) = Predictor(model, grey_maximum=4095, device='cpu').predict(files[:1])
    assert row == expected and not row.get('error')
    assert (
        predictor.loaded.transforms.open(files[0]).tobytes()
        == xception_hub.open_image(files[0], grey_maximum=4095).tobytes()
    )
    assert predictor.identity()['grey_maximum'] == 4095
    run('--eval-only', '--model', model, '--dataset', photos, '--output', tmp_path / 'evaluation')
    assert 'better than the model is' in capsys.readouterr().err
    assert json.loads((tmp_path / 'evaluation' / 'metrics.json').read_text())['bad_images'] == 0
    run('--model', model, '--recipe', 'full', '--epochs', 1, '--image-size', 32, '--dataset', photos, '--output',
        tmp_path / 'on')  # fmt: skip
    assert json.loads((tmp_path / 'on' / 'config.json').read_text())['grey_maximum'] == 4095


@pytest.mark.filterwarnings('default:The model was trained on')
def test_the_problem_type_is_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table in which each image happens to have one label is measured by the sigmoid that the model learnt with."""
    labels = ["['x']", "['y']", "['x', 'y']", '[]'] * 3
    run(*QUICK, '--dataset', table(tmp_path, label=labels), '--output', tmp_path / 'model')
    single = table(tmp_path, label=list('xy' * 4))
    run('--eval-only', '--model', tmp_path / 'model', '--dataset', single, '--output', tmp_path / 'evaluation')
    assert 'better than the model is' in capsys.readouterr().err
    metrics = json.loads((tmp_path / 'evaluation' / 'metrics.json').read_text())
    assert 'micro_f1' in metrics
    rows = pandas.read_csv(tmp_path / 'evaluation' / 'predictions.csv')
    for row, found in zip(rows.itertuples(), Predictor(tmp_path / 'model', device='cpu').predict(rows.file)):
        assert dict(json.loads(row.top)) == pytest.approx(dict(json.loads(found['top'])), abs=1e-5)


def test_several_labels_for_a_model_of_exclusive_classes(tmp_path: Path) -> None:
    """Are nothing that it can be measured by."""
    run(*QUICK, '--dataset', table(tmp_path, label=list('xy' * 6)), '--output', tmp_path / 'model')
    several = table(tmp_path, label=["['x']", "['x', 'y']"] * 4)
    with pytest.raises((SystemExit, ModelError), match='exclude each other'):
        run('--eval-only', '--model', tmp_path / 'model', '--dataset', several, '--output', tmp_path / 'evaluation')


def test_a_table_that_agrees_with_the_folders(tmp_path: Path) -> None:
    """Is no question."""
    for name in ('cat', 'dog'):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        (tmp_path / 'photos' / name / f'{name}.png').write_bytes((tmp_path / '000.png').read_bytes())
    (tmp_path / 'photos' / 'list.csv').write_text('image,label\ncat.png,cat\ndog.png,dog\n')
    assert load(tmp_path / 'photos').class_names == ['cat', 'dog']
