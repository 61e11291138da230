"""Pictures of what spoke for a class, over the pixels that the network saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import call
from PIL import Image
from random_model import random_model
from small_images import odd_images, photo

import xception_hub
from xception_hub.cli import main
from xception_hub.directory.write import write_model
from xception_hub.inference.attribution import explain
from xception_hub.inference.overlay import overlay, seen
from xception_hub.models.build import Transforms

NAMES = ['cup', 'Glass', 'plate', '7']


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, whose images are the middle of photos."""
    folder = tmp_path_factory.mktemp('model')
    model = random_model(num_classes=4, width_multiplier=0.25)
    config = dict(
        Transforms(model, 96).config,
        crop_pct=0.5,
        interpolation='bicubic',
        crop_mode='center',
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
    )
    write_model(folder, model, dict(label_names=NAMES), {}, config)
    return folder


@pytest.fixture(scope='module')
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp('photo') / 'temple.png'
    photo().save(file)
    return file


def test_lies_over_what_the_network_saw(folder: Path, file: Path) -> None:
    """The resized middle of the photo, pixel by pixel."""
    config = Transforms(timm.create_model(f'local-dir:{folder}', pretrained=True)).config
    image = timm.data.create_transform(**config)(xception_hub.open_image(file))
    found = np.asarray(seen(image, config['mean'], config['std']), int)
    width, height = 640 * 192 // 427, 192
    resized = photo().resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 96) / 2), round((height - 96) / 2)
    expected = np.asarray(resized.crop((left, top, left + 96, top + 96)), int)
    assert np.abs(found - expected).max() <= 1


def test_overlay() -> None:
    """Dark where nothing speaks for the class, light where most does, and the photo is seen through it."""
    heat = torch.zeros(40, 60)
    heat[:20, 30:] = 1
    picture = np.asarray(overlay(photo().resize((60, 40)), heat), int).sum(2)
    assert picture[:20, 30:].min() > picture[20:].mean() and picture[20:].std() > 10


@pytest.mark.parametrize('classes', [[], ['plate'], ['glass', '7', '0']])
def test_command(classes: list[str], folder: Path, file: Path, tmp_path: Path) -> None:
    """The likeliest classes or the named ones; a class may be called by a number that is another one's."""
    options = [option for name in classes for option in ('--class', name)]
    result = call(main, 'explain', file, '--model', folder, '--output', tmp_path / 'a' / 'b', '--raw', *options)
    assert result.returncode == 0, result.stderr
    path, _, rest = result.stdout.strip().partition('\t')
    named = [part.rpartition(' ') for part in rest.split(', ')]
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    image = Transforms(model).evaluation()(xception_hub.open_image(file))
    with torch.inference_mode():
        probabilities = model(image[None])[0].softmax(0)
    expected = [dict(plate=2, glass=1)[name] if name in ('plate', 'glass') else [3, 0][name == '0'] for name in classes]
    expected = expected or probabilities.argsort(descending=True)[:3].tolist()
    assert [name for name, _, _ in named] == [NAMES[number] for number in expected]
    assert [float(p) for _, _, p in named] == pytest.approx(probabilities[expected].tolist(), abs=1e-3)
    maps = np.load(tmp_path / 'a' / 'b' / 'temple.npy')
    own = explain(model, image.expand(len(expected), -1, -1, -1), expected)
    assert np.allclose(maps, own, atol=1e-6) and maps.shape == (len(expected), 96, 96)
    with Image.open(path) as picture:
        assert picture.format == 'PNG' and picture.width > 400 * len(expected) and picture.height > 300


def test_photos_of_one_name(folder: Path, file: Path, tmp_path: Path) -> None:
    """Each has its own picture; of an animation it is the first frame; a bad one is named at the end."""
    photo().save(tmp_path / 'temple.gif', save_all=True, append_images=[Image.new('RGB', photo().size)])
    (tmp_path / 'bad.png').write_text('text')
    (tmp_path / 'huge.bmp').write_bytes(huge_bmp())
    Image.new('RGB', (40000, 1)).save(tmp_path / 'narrow.png')
    photos = [file, *(tmp_path / name for name in ('bad.png', 'temple.gif', 'huge.bmp', 'narrow.png'))]
    result = call(main, 'explain', *photos, '--model', folder, '--output', tmp_path / 'out', '--top', 1)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['temple-2.png', 'temple.png']
    first, second = (np.asarray(Image.open(tmp_path / 'out' / name).convert('L'), float) for name in TEMPLES)
    assert np.abs(first - second).mean() < 15
    assert f'Bad image: {tmp_path}/bad.png: no image of a known format' in result.stderr
    assert 'huge.bmp: 60000x60000 pixels' in result.stderr and 'narrow.png: 40000x1 pixels' in result.stderr
    assert result.returncode == 1 and result.stderr.endswith('error: 3 of 5 photos cannot be used.\n')


def test_folder(folder: Path, tmp_path: Path) -> None:
    """With its subfolders; no picture takes the place of another, and a second call does not explain the first's."""
    for name in ('a/temple.png', 'b/temple.png', 'temple-2.png', 'c/without_suffix'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo().resize((99, 80)).save(tmp_path / name, 'PNG')
    (tmp_path / 'notes.txt').write_text('text')
    command = ['explain', tmp_path, '--model', folder, '--output', tmp_path / 'out', '--top', 1]
    for _ in range(2):
        result = call(main, *command)
        assert result.returncode == 0, result.stderr
        assert sorted(path.stem for path in (tmp_path / 'out').iterdir()) == [
            'temple', 'temple-2', 'temple-3', 'without_suffix',
        ]  # fmt: skip


def test_grey_images(folder: Path, tmp_path: Path) -> None:
    """The option that the error names is one of this command."""
    (tmp_path / 'grey.png').write_bytes(odd_images()['12 bits'])
    command = ['explain', tmp_path / 'grey.png', '--model', folder, '--output', tmp_path / 'out', '--top', 1]
    assert '--grey-maximum' in call(main, *command).stderr
    assert call(main, *command, '--grey-maximum', 4095).returncode == 0


def test_replaces_no_photo(folder: Path, file: Path) -> None:
    before = file.read_bytes()
    for path in (file, file.parent):
        result = call(main, 'explain', path, '--model', folder, '--output', file.parent)
        assert result.returncode == 1 and '--output' in result.stderr and file.read_bytes() == before


TEMPLES = ('temple.png', 'temple-2.png')


def huge_bmp() -> bytes:
    """A header that declares 60000x60000 pixels."""
    size = (60000).to_bytes(4, 'little')
    header = (40).to_bytes(4, 'little') + size + size + b'\1\0\x18\0' + bytes(24)
    return b'BM' + (54).to_bytes(4, 'little') + bytes(4) + (54).to_bytes(4, 'little') + header


def test_long_names(folder: Path, file: Path, tmp_path: Path) -> None:
    """In scripts of all kinds, with signs that matplotlib takes for mathematics."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    names = ['$x_1^{2$ %d', 'very long ' * 30, 'Кружка', '<b>']
    write_model(tmp_path, model, dict(label_names=names), {}, Transforms(model).config)
    result = call(main, 'explain', file, '--model', tmp_path, '--output', tmp_path / 'out', '--top', 4)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(), 'Name photos: xception-hub explain photo.jpg --model DIR.'),
        (dict(photos=['EMPTY']), 'no image. Name photos, or a folder with photos.'),
        (dict(photos=['nowhere.jpg']), 'error: 1 of 1 photos cannot be used.'),
        (dict(photos=['PHOTO'], classes='cupp'), "There is no class 'cupp'. Similar names are cup. Pass a name"),
        (dict(photos=['PHOTO'], classes='4'), "There is no class '4'. The first are cup, Glass, plate, 7. Pass a name"),
        (dict(photos=['PHOTO'], top=0), '0 classes do not fit into a picture: 1 to 12 do.'),
        (dict(photos=['PHOTO'], model='local-dir:nowhere'), 'nowhere is no model directory: it has no config.json'),
        (dict(photos=['PHOTO'], image_size=8), 'The model does not take images of 8 pixels'),
        (dict(photos=['PHOTO'], output='PHOTO/out'), '--output'),
    ],
)  # fmt: skip
def test_refused(options: dict[str, Any], said: str, folder: Path, file: Path, tmp_path: Path) -> None:
    paths = [dict(PHOTO=file, EMPTY=tmp_path).get(path, path) for path in options.pop('photos', [])]
    given = [f'--{name.replace("classes", "class").replace("_", "-")}={str(value).replace("PHOTO", str(file))}'
             for name, value in {'model': folder, **options}.items()]  # fmt: skip
    result = call(main, 'explain', *paths, *given)
    assert result.returncode == 1 and said in result.stderr.splitlines()[-1]


def test_method_is_refused_before_the_model_is_loaded(file: Path) -> None:
    refused = call(main, 'explain', file, '--model', 'nowhere', '--method', 'lime')
    assert refused.returncode == 2 and '"gradcam"' in refused.stderr and 'nowhere' not in refused.stderr


def test_vision_transformer(file: Path, tmp_path: Path) -> None:
    """Has no feature maps, which the error says beside what explains it; and that does."""
    model = timm.create_model('test_vit', num_classes=2, img_size=96)
    write_model(tmp_path, model, dict(label_names=['a', 'b']), {}, Transforms(model).config)
    command = ['explain', file, '--model', tmp_path, '--output', tmp_path, '--top', 1]
    assert 'Choose the method integrated-gradients.' in call(main, *command).stderr
    assert call(main, *command, '--method', 'integrated-gradients').returncode == 0


def test_no_classifier(file: Path, tmp_path: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=0)
    write_model(tmp_path, model, {}, {}, Transforms(model).config)
    result = call(main, 'explain', file, '--model', tmp_path)
    assert 'are features, without a classifier. A map explains a class' in result.stderr
