"""One engine: the same rows of whatever an image comes as, by any threads and any library, in flat memory."""

import itertools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from forked import CONTEXT
from patience import patience
from PIL import Image
from random_model import save_small
from small_images import encoded, photo, save_pieces

import xception_hub
from xception_hub.errors import DataError, ModelError, SettingsError
from xception_hub.inference.predictor import AHEAD, Predictor
from xception_hub.models.build import Transforms

NAMES = ['cup', 'fork', 'glass', 'plate']
COUNT = 7  # images; one more cannot be used
BATCH_SIZE = 3


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    return save_small(tmp_path_factory.mktemp('model'), NAMES)


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of several sizes, and a truncated one in their middle."""
    folder = tmp_path_factory.mktemp('photos')
    paths = [path for size in (40, 64) for path in save_pieces(folder / str(size), 4, size)]
    paths[4].write_bytes(paths[4].read_bytes()[:1000])
    return paths


@pytest.fixture(scope='module')
def predictor(folder: Path) -> Predictor:
    return predictor_of(folder)


@pytest.fixture(scope='module')
def rows(predictor: Predictor, files: list[Path]) -> list[dict[str, Any]]:
    return list(predictor.predict(files))


def predictor_of(folder: Path, **options: Any) -> Predictor:
    return Predictor(folder, **{'batch_size': BATCH_SIZE, 'device': 'cpu', **options})


def bad_row(error: str) -> dict[str, Any]:
    return dict(label=None, probability=None, top=None, error=error)


def as_rows(columns: Any) -> list[dict[str, Any]]:
    """Columns that are empty where an image cannot be used, as rows."""
    names = ('label', 'probability', 'top', 'error')
    cells = zip(*(columns[name] for name in names))
    return [
        bad_row(error) if error else dict(label=label, probability=probability, top=top, error=None)
        for label, probability, top, error in cells
    ]


def test_equals_the_model(folder: Path, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """By timm's own preparation, image by image."""
    model, _ = xception_hub.models.build.open_model(folder)
    prepared = Transforms(model).evaluation()
    for path, row in zip(files, rows):
        if path != files[4]:
            with torch.inference_mode():
                probabilities = model(prepared(xception_hub.open_image(path))[None]).double().softmax(1)[0]
            assert row['label'] == NAMES[probabilities.argmax()]
            assert row['probability'] == pytest.approx(probabilities.max().item(), abs=1e-6)
            assert row['error'] is None
    assert rows[4] == bad_row(rows[4]['error']) and rows[4]['error'].startswith('damaged: ')


def test_pixels(predictor: Predictor, files: list[Path]) -> None:
    """What crosses from the threads in uint8 becomes the very input of an evaluation."""
    transforms = predictor.loaded.transforms
    image = xception_hub.open_image(files[0])
    pixels = transforms.pixels()(image)
    assert pixels.dtype == torch.uint8
    assert torch.equal(transforms.normalized(pixels[None])[0], transforms.evaluation()(image))


def test_whatever_an_image_comes_as(predictor: Predictor, files: list[Path]) -> None:
    good = [path for path in files if path != files[4]]
    expected = list(predictor.predict(good))
    contents = [path.read_bytes() for path in good]
    for images in (
        map(str, good),
        contents,
        map(bytearray, contents),
        map(Image.open, good),
        (np.asarray(xception_hub.open_image(path)) for path in good),
        (dict(bytes=content, path='elsewhere.png') for content in contents),
        (dict(bytes=None, path=str(path)) for path in good),
    ):
        assert list(predictor.predict(images)) == expected
    for single in (
        good[0],
        str(good[0]),
        contents[0],
        memoryview(contents[0]),
        Image.open(good[0]),
        np.asarray(Image.open(good[0])),
    ):
        assert [row['label'] for row in predictor.predict(single)] == [expected[0]['label']]


def test_a_grey_array(predictor: Predictor) -> None:
    """Is one image, of a kind that cannot be used."""
    (row,) = predictor.predict(np.zeros((40, 40), np.uint8))
    assert row['error'] == 'an array [40, 40] of uint8 instead of [H, W, 3] in uint8'


def test_folder(predictor: Predictor, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """Given alone, and with the folders below it."""
    for folder in (files[0].parents[1], str(files[0].parents[1])):
        assert list(predictor.predict(folder)) == [dict(file=str(file), **row) for file, row in zip(files, rows)]


def test_empty_folder(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no image in the folder'):
        list(predictor.predict(tmp_path))


def test_url(
    predictor: Predictor, files: list[Path], rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(files[0].parent) as address:
        assert [row['error'] for row in predictor.predict(f'{address}/nothing')] == [
            'the URL cannot be read: HTTPError: HTTP Error 404: File not found'
        ]
        url = f'{address}/{files[0].name}'
        for images in (url, [url], [dict(path=url)], f'file://{files[0]}'):
            assert [row['label'] for row in predictor.predict(images)] == [rows[0]['label']]
        monkeypatch.setattr('xception_hub.inference.predictor.MAX_BYTES', 99)
        assert [row['error'] for row in predictor.predict(url)] == ['the URL has more than 99 bytes']
    (row,) = predictor.predict(url)  # of a server that has ended
    assert row['error'].startswith('the URL cannot be read')


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Address of a server of the files in a folder."""
    with ThreadingHTTPServer(('localhost', 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'http://localhost:{server.server_port}'
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ('image', 'reason'),
    [
        (b'', 'no image of a known format'),
        (None, 'no image in this row'),
        (dict(bytes=None, path=None), 'no image in this row'),
        ('nowhere.jpg', 'there is no such file'),
        ('.', 'a folder, which predict takes alone: predict(folder)'),
        (7, 'int instead of a path, bytes, an image or an array'),
        (np.zeros((3, 4, 4)), 'an array [3, 4, 4] of float64 instead of [H, W, 3] in uint8'),
        (encoded(Image.new('L', (60000, 1))), '60000x1 pixels, which are too narrow'),
    ],
    ids=itertools.count(),
)
def test_what_cannot_be_used(image: Any, reason: str, predictor: Predictor) -> None:
    assert list(predictor.predict([image])) == [bad_row(reason)]


def test_threads(folder: Path, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """They change nothing, and take no more images than they need."""
    taken = []

    def images() -> Iterator[Path]:
        for path in itertools.cycle(files):
            taken.append(path)
            yield path

    predictor = predictor_of(folder, threads=4)
    found = predictor.predict(images())
    assert list(itertools.islice(found, BATCH_SIZE)) == rows[:BATCH_SIZE]
    assert len(taken) == (1 + AHEAD) * BATCH_SIZE
    found.close()  # type: ignore[attr-defined]
    assert list(predictor.predict(files)) == rows


def test_batch(predictor: Predictor, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """A dict of arrays is answered by one, of the same types whether images are bad or not."""
    contents = np.array([path.read_bytes() for path in files], object)
    names = np.array([str(path) for path in files])
    found = predictor(dict(path=names, bytes=contents, number=np.arange(8)))
    assert list(found) == ['path', 'number', 'label', 'probability', 'top', 'error']
    assert as_rows(found) == rows
    bad = predictor(dict(bytes=contents[4:5]))
    assert {name: values.dtype for name, values in bad.items()} == {name: found[name].dtype for name in bad}
    assert (bad['label'][0], bad['top'][0], np.isnan(bad['probability'][0])) == ('', '', True)
    assert as_rows(predictor(dict(path=names))) == rows
    same = np.stack([np.asarray(xception_hub.open_image(path)) for path in files[:4]])
    assert as_rows(predictor(dict(image=same))) == rows[:3] + list(predictor.predict(files[3:4]))
    with pytest.raises(DataError, match='image, bytes or path.*photo'):
        predictor(dict(photo=names))


def test_features(folder: Path, files: list[Path]) -> None:
    """NaN where there are none, as wide as the others."""
    predictor = predictor_of(folder, embed=True)
    found = predictor(dict(path=files))
    assert found['features'].shape == (8, 512) and found['features'].dtype == np.float32
    assert np.isnan(found['features']).any(1).tolist() == [path == files[4] for path in files]
    assert predictor(dict(path=files[4:5]))['features'].shape == (1, 512)
    model, _ = xception_hub.models.build.open_model(folder)
    with pytest.raises(ModelError, match='4 classes'):
        list(predictor_of(model, embed=True).predict(files))
    model.reset_classifier(0)
    assert np.array_equal(predictor_of(model, embed=True)(dict(path=files))['features'], found['features'], True)


def test_faster_models(folder: Path, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """By the name of an engine, and as `optimize` returns them."""
    model, _ = xception_hub.models.build.open_model(folder)
    fast = xception_hub.optimize(model, torch.zeros(BATCH_SIZE, 3, 48, 48), engine='pytorch')
    for predictor in (predictor_of(folder, engine='pytorch'), predictor_of(fast)):
        found = list(predictor.predict(files))
        assert [row.get('label') for row in found] == [row.get('label') for row in rows]
        assert found[0]['probability'] == pytest.approx(rows[0]['probability'], abs=1e-4)


@pytest.mark.parametrize('options', [{}, dict(image_size=64), dict(engine='pytorch')], ids=str)
def test_double_by_default(
    options: dict[str, Any], folder: Path, files: list[Path], request: pytest.FixtureRequest
) -> None:
    """A model that is given by its name is in float32, whatever torch's default is."""
    expected = predictor_of(folder, **options)
    expected_rows = list(expected.predict(files))
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    found = predictor_of(folder, **options)
    assert list(found.predict(files)) == expected_rows
    assert found.identity() == expected.identity()


def test_another_precision(folder: Path, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """A model that is given computes in its own precision."""
    model, _ = xception_hub.models.build.open_model(folder)
    found = list(predictor_of(model.double()).predict(files[:4]))
    probabilities = [row['probability'] for row in rows[:4]]
    assert [row['probability'] for row in found] == pytest.approx(probabilities, abs=1e-6)


def test_pickled(predictor: Predictor, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """A worker loads the model by its name."""
    pickled = pickle.dumps(predictor)
    assert len(pickled) < 1000
    assert list(pickle.loads(pickled).predict(files)) == rows


@pytest.mark.parametrize('name', ['top', 'batch_size', 'threads'])
def test_settings(name: str) -> None:
    with pytest.raises(SettingsError, match=f'{name}.*0.*1 or more'):
        Predictor('test_resnet', **{name: 0})


# In forked processes


def labels_after_fork(folder: Path, images: list[Path], seconds: float) -> list[str]:
    """Labels by a fork of a process that has predicted by several threads; to be called in a process of its own."""
    torch.set_num_threads(2)
    predictor = predictor_of(folder)
    list(predictor.predict(images))
    with multiprocessing.get_context('fork').Pool(1) as pool:  # ends the fork if it hangs
        loaded_before = pool.apply_async(labels_of, (predictor, images))
        return loaded_before.get(seconds)


def labels_of(predictor: Predictor, images: list[Path]) -> list[str]:
    return [row['label'] for row in predictor.predict(images)]


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_fork(folder: Path, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """As `datasets.map(num_proc=2)` makes them: torch's threads do not exist in the fork, so it computes by one."""
    with ProcessPoolExecutor(1, CONTEXT) as process:
        labels = process.submit(labels_after_fork, folder, files[:4], patience(60)).result()
    assert labels == [row['label'] for row in rows[:4]]


# In flat memory


def growth(folder: Path, count: int, keep: bool) -> float:
    """MB that predicting some images adds at most; to be called in a process of its own."""
    content = encoded(photo().crop((0, 0, 160, 160)), 'JPEG', quality=100)
    predictor = predictor_of(folder, batch_size=8)
    list(predictor.predict([content] * 32))
    torch.set_num_threads(1)
    before = most = anonymous()
    kept = []
    for number, row in enumerate(predictor.predict(bytes(content) for _ in range(count))):
        kept += [row, np.full(10_000, number)] if keep else []
        most = max(most, anonymous()) if number % 10 == 0 else most
    return most - before


def anonymous() -> float:
    """MB of this process that no file could be read again for."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith('RssAnon:'))


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='only Linux tells a process its memory')
@pytest.mark.parametrize('keep', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_flat_memory(keep: bool, folder: Path) -> None:
    """Forty times the images; what keeps something of each is found."""
    found = []
    for count in (10, 400):
        with ProcessPoolExecutor(1, CONTEXT) as process:
            found.append(process.submit(growth, folder, count, keep).result())
    print(f'{found[0]:.1f} MB, with forty times the images {found[1]:.1f} MB')
    assert (found[1] <= found[0] + 20) != keep


# By other libraries; the page about them runs Ray Data and Spark, see test_readme.py


def test_datasets(predictor: Predictor, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """With an error in the second batch only, whose type the first has to tell."""
    source = datasets.Dataset.from_dict(dict(path=[str(path) for path in files]))
    found = source.map(predictor, batched=True, batch_size=BATCH_SIZE)
    assert as_rows(found.to_dict()) == rows
    good = datasets.Dataset.from_dict(dict(image=[str(path) for path in files[:3]]))
    decoded = good.cast_column('image', datasets.Image()).map(predictor, batched=True)
    assert as_rows(decoded.select_columns(list(found.features)[1:]).to_dict()) == rows[:3]


def test_predict_fn(predictor: Predictor, files: list[Path], rows: list[dict[str, Any]]) -> None:
    """What Spark calls: pickled, called for a function, which is given an array."""
    make = pickle.loads(pickle.dumps(predictor.make_predict_fn))
    assert as_rows(make()(np.array([path.read_bytes() for path in files], object))) == rows
