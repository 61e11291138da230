"""Predictions for images wherever they are: what an evaluation of the same model finds, and nothing invented."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch
from datasets_read import load
from PIL import Image
from random_model import random_model
from small_images import WORDS, save_digits

import xception_hub
from xception_hub.inference import predict
from xception_hub.inference import prediction_tables as predictions
from xception_hub.inference.predictor import Predictor
from xception_hub.models import classifier
from xception_hub.models.build import Transforms
from xception_hub.models.class_names import names_of
from xception_hub.training.batches import Images, InOrder, loader
from xception_hub.training.metrics import Predictions


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of each of four digits."""
    return save_digits(tmp_path_factory.mktemp('photos') / 'digits', 3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    folder = tmp_path_factory.mktemp('model')
    model = random_model(num_classes=4, width_multiplier=0.25, min_img_size=32)
    classifier.save(folder, model, Transforms(model, 64).config, sorted(WORDS), False)
    return folder


def rows_of(output: Path) -> list[dict[str, Any]]:
    kind = {'.csv': 'csv', '.jsonl': 'json', '.parquet': 'parquet'}[output.suffix]
    return datasets.load_dataset(kind, data_files=str(output), split='train').to_list()


def test_equals_the_evaluation(photos: Path, folder: Path, tmp_path: Path) -> None:
    """Labels and probabilities of every image are those of the report, in tables of all kinds."""
    tables = []
    for suffix in predictions.SUFFIXES:
        output = tmp_path / f'predictions{suffix}'
        predict.main(str(photos), model=str(folder), output=output, batch_size=5, probabilities=True, device='cpu')
        tables.append({row['file']: row for row in rows_of(output)})
    rows = tables[0]
    assert tables[2] == rows
    assert tables[1] == {
        file: dict(
            row,
            top=[dict(label=label, score=score) for label, score in json.loads(row['top'])],
            probabilities=json.loads(row['probabilities']),
        )
        for file, row in rows.items()
    }
    split = load(str(photos)).train
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transforms = Transforms(model)
    images = Images(split, transforms.evaluation(), transforms.min_side)
    assert len(rows) == len(split) == 12
    for batch in loader(images, InOrder(split, 7)):
        with torch.inference_mode():
            expected = Predictions.of(model(batch.inputs), batch.labels, batch.indices)
        for i, index in enumerate(batch.indices.tolist()):
            row = rows[split.cell(index)['path']]
            assert row['label'] == sorted(WORDS)[expected.classes[i, 0]]
            assert row['probability'] == pytest.approx(expected.probabilities[i, 0], abs=1e-5)
            top = json.loads(row['top'])
            assert [name for name, _ in top] == [sorted(WORDS)[place] for place in expected.classes[i]]
            assert sum(json.loads(row['probabilities'])) == pytest.approx(1)
            assert row['error'] is None


def test_screen(photos: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = photos / 'one' / '0.png'
    predict.main(str(file), model=f'local-dir:{folder}', device='cpu')
    out, err = capsys.readouterr()
    name, label, probability = out.strip().split('\t')
    assert (name, label in WORDS, 0.25 <= float(probability) <= 1) == (str(file), True, True)
    assert '1 of 1 images' in err and '0 bad' in err


def test_json(photos: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines are those of a .jsonl, errors included; nothing else is on the standard output."""
    bad = tmp_path / 'bad.png'
    bad.write_bytes(b'no image')
    arguments = (str(photos / 'one' / '0.png'), str(bad))
    predict.main(*arguments, model=str(folder), device='cpu', output=tmp_path / 'rows.jsonl')
    assert capsys.readouterr().out == ''
    predict.main(*arguments, model=str(folder), device='cpu', json_=True)
    out = capsys.readouterr().out
    assert out == (tmp_path / 'rows.jsonl').read_text()
    good, broken = map(json.loads, out.splitlines())
    assert (good['label'] in WORDS, broken['label'], bool(broken['error'])) == (True, None, True)
    with pytest.raises(SystemExit, match='--json.*--output rows.csv'):
        predict.main(*arguments, model=str(folder), output=Path('rows.csv'), json_=True)


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'saved'])
def test_tables(kind: str, photos: Path, folder: Path, tmp_path: Path) -> None:
    """Without any labels."""
    paths = sorted(str(path) for path in photos.rglob('*.png'))
    source = tmp_path / f'table.{kind}'
    if kind == 'csv':
        source.write_text('\n'.join(['image', *paths]))
    else:
        rows = datasets.Dataset.from_dict(dict(picture=paths)).cast_column('picture', datasets.Image())
        rows.to_parquet(source) if kind == 'parquet' else rows.save_to_disk(source)
    if kind == 'parquet':  # by a pattern, and as the only file of a folder
        for name, given in (('c', tmp_path / 'table.*'), ('d', tmp_path)):
            predict.main(str(given), model=str(folder), output=tmp_path.parent / f'{name}.csv', device='cpu')
            assert len(rows_of(tmp_path.parent / f'{name}.csv')) == len(paths)
    for name, given in (('a', source), ('b', photos)):
        predict.main(str(given), model=str(folder), output=tmp_path / f'{name}.parquet', device='cpu')
    one, other = rows_of(tmp_path / 'a.parquet'), sorted(rows_of(tmp_path / 'b.parquet'), key=lambda row: row['file'])
    assert [row['label'] for row in one] == [row['label'] for row in other]


def test_embed(photos: Path, folder: Path, tmp_path: Path) -> None:
    for suffix in ('.jsonl', '.parquet'):
        predict.main(str(photos), model=str(folder), output=tmp_path / f'rows{suffix}', embed=True, device='cpu')
    rows = rows_of(tmp_path / 'rows.parquet')
    assert rows_of(tmp_path / 'rows.jsonl') == rows
    model = timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=0).eval()
    image = Transforms(model).evaluation()(xception_hub.open_image(rows[0]['file']))
    with torch.inference_mode():
        assert torch.allclose(model(image[None])[0], torch.tensor(rows[0]['features']), atol=1e-5)


def test_several_labels(photos: Path, tmp_path: Path) -> None:
    """A model for several labels gives all classes above the threshold."""
    model = random_model(num_classes=4, width_multiplier=0.25, min_img_size=32)
    classifier.save(tmp_path, model, Transforms(model, 64).config, sorted(WORDS), True)
    for threshold, count in ((0.0, 4), (1.0, 0)):
        rows = [*Predictor(tmp_path, threshold=threshold, device='cpu').predict(photos.rglob('*.png'))]
        assert {row['probability'] for row in rows} == {None}
        assert [len(json.loads(row['label'])) for row in rows] == [count] * 12
        line = json.loads(predictions.json_line(rows[0], ['label', 'probability', 'top']))
        assert (len(line['label']), line['probability'], len(line['top'])) == (count, None, 4)


@pytest.mark.needs('transformers')
def test_equals_the_pipeline(photos: Path, folder: Path, tmp_path: Path) -> None:
    """Of transformers, given an image as the card opens it: turned, and on white where it is transparent."""
    image = Image.open(photos / 'two' / '0.png').convert('RGBA')
    image.putalpha(Image.linear_gradient('L').resize(image.size))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / 'phone.png', exif=exif)
    from transformers import pipeline

    classify = pipeline('image-classification', model=str(folder))
    predict.main(str(tmp_path / 'phone.png'), model=str(folder), output=tmp_path / 'rows.jsonl', device='cpu')
    (row,) = rows_of(tmp_path / 'rows.jsonl')

    def scores(found: list[dict[str, Any]]) -> dict[str, float]:
        return {one['label']: one['score'] for one in found}

    expected = pytest.approx(scores(row['top']), abs=1e-5)
    assert scores(classify(xception_hub.open_image(tmp_path / 'phone.png'))) == expected
    assert scores(classify(str(tmp_path / 'phone.png'))) != expected


def test_outputs_that_are_no_classes(photos: Path, folder: Path, tmp_path: Path) -> None:
    """A converted model that ends in relu gives values; its features can be had."""
    shutil.copytree(folder, tmp_path / 'model')
    config = json.loads((folder / 'config.json').read_text())
    (tmp_path / 'model' / 'config.json').write_text(json.dumps(dict(config, keras=dict(final_activation='relu'))))
    with pytest.raises(SystemExit) as ended:
        predict.main(str(photos), model=str(tmp_path / 'model'), device='cpu')
    assert "are values: they end in 'relu'" in str(ended.value) and '--embed' in str(ended.value)
    output = tmp_path / 'rows.parquet'
    predict.main(str(photos), model=str(tmp_path / 'model'), output=output, embed=True, device='cpu')
    assert len(rows_of(output)) == 12


def test_a_target_that_can_not_be_written(photos: Path, folder: Path, tmp_path: Path) -> None:
    """Nothing half-written is left, and an earlier file stays."""
    (tmp_path / 'file').write_text('text')
    with pytest.raises(SystemExit) as ended:
        predict.main(str(photos), model=str(folder), output=tmp_path / 'file' / 'rows.csv', device='cpu')
    assert 'could not be written' in str(ended.value)
    (tmp_path / 'rows.csv').mkdir()
    with pytest.raises(SystemExit):
        predict.main(str(photos), model=str(folder), output=tmp_path / 'rows.csv', device='cpu')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'rows.csv']


def test_a_name_that_is_no_text(photos: Path, folder: Path, tmp_path: Path) -> None:
    """As archives of old systems leave it."""
    (tmp_path / os.fsdecode(b'caf\xe9.png')).write_bytes((photos / 'one' / '0.png').read_bytes())
    with pytest.raises(SystemExit) as ended:
        predict.main(str(tmp_path), model=str(folder), output=tmp_path / 'rows.csv', device='cpu')
    assert "caf\\udce9.png' is not UTF-8, which no table can hold: rename the file." in str(ended.value)


def test_notes_of_a_table(photos: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'table.csv').write_text('image\none/0\n')
    predict.main(str(tmp_path / 'table.csv'), model=str(folder), image_folder=photos, device='cpu')
    assert 'written without their suffix, such as one/0' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('paths', 'options', 'said'),
    [
        ((), {}, 'Name images, a folder, a table or a dataset'),
        (('nowhere.jpg',), {}, 'There is no nowhere.jpg'),
        (('.',), dict(output=Path('x.xlsx')), "ends in '.xlsx'. A table must end in one of .csv, .jsonl, .parquet"),
        (('.',), dict(embed=True), '--embed writes vectors'),
        (('.',), {}, 'There is no image in ..'),
        (('PHOTOS',), dict(model='xception_papr'), "no model 'xception_papr'. Similar names are xception_paper"),
        (('PHOTOS',), dict(device='gpu'), "The device 'gpu' cannot be used"),
        (('PHOTOS',), dict(engine='steam'), 'steam'),
    ],
)
def test_refused(
    paths: tuple[str, ...], options: dict[str, Any], said: str, photos: Path, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [str(photos) if path == 'PHOTOS' else path for path in paths]
    with pytest.raises(SystemExit) as ended:
        predict.main(*given, **{'model': str(folder), 'device': 'cpu', **options})
    assert said in str(ended.value)


def test_names_of_outputs() -> None:
    """Of ImageNet's classes two are called crane, and no name stands for two outputs."""
    names = names_of(timm.create_model('test_resnet'))
    assert len(set(names)) == 1000
    assert (names[0], names[134], names[517]) == ('tench', 'crane (n02012849)', 'crane (n03126707)')
