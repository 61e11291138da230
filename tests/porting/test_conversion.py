"""From a Keras file to a directory that timm loads: what is written, what is refused, and what never happens."""

import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors
import timm
import torch
from commands import call
from hub_server import HubServer
from keras_files import randomised
from old_keras_files import keras1_file
from port_a_keras_model import CLASS_NAMES, PREPROCESSING, Checkpoint

from conversion import convert as convert_module
from conversion.convert import app, convert
from xception_hub.errors import DirectoryError, KerasFileError, ParityError
from xception_hub.porting.declared import RELEASE_PREPROCESSING, choose_preprocessing
from xception_hub.porting.names import LAYERS
from xception_hub.porting.output import PARITY_FILE
from xception_hub.porting.parity import Parity
from xception_hub.porting.port import Port, port
from xception_hub.porting.reference import BY_KERAS
from xception_hub.porting.release import RELEASES, Release, fetch
from xception_hub.porting.structure import parse

# What is written


def test_directory(converted: Path) -> None:
    """Four files, readable by others, and beside them only what the example writes."""
    assert {path.name for path in converted.iterdir()} == {'README.md', 'config.json', 'model.safetensors', PARITY_FILE}
    assert {path.name for path in converted.parent.iterdir()} == {converted.name, 'photos.png', 'printed'}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in converted.iterdir())


def test_config(converted: Path) -> None:
    """Preprocessing, class names, hidden layer and dropout arrive."""
    config = json.loads((converted / 'config.json').read_text())
    assert config['architecture'] == 'xception_paper'
    assert config['pretrained_cfg']['label_names'] == list(CLASS_NAMES)
    assert config['num_classes'] == 6 and 'num_classes' not in config['model_args']  # transformers passes it itself
    assert config['model_args'].items() >= dict(fc_widths=[100], drop_rate=0.2).items()
    half, size = [0.5] * 3, [3, 150, 150]
    images = dict(input_size=size, interpolation='nearest', crop_mode='squash', crop_pct=1.0, mean=half, std=half)
    assert config['pretrained_cfg'].items() >= images.items()
    assert config['keras']['final_activation'] == 'linear'


def test_parity_report(converted: Path) -> None:
    report = json.loads((converted / 'parity.json').read_text())
    assert report['passed']
    with_keras = [proof for proof in report['proofs'] if proof['proof'] == 'Keras']
    assert {(proof['dtype'], *proof['size']) for proof in with_keras} == {
        (dtype, *size) for dtype in ('float64', 'float32') for size in ((150, 150), (107, 150))
    }
    assert all(proof['worst'] <= proof['tolerance'] for proof in with_keras)
    assert report['reading'] == BY_KERAS
    assert [(proof['proof'], proof['passed']) for proof in report['proofs'] if proof not in with_keras] == [
        ('tensors', True),
        ('settings and wires', True),
        ('moving statistics', True),
        ('residual normalizations', True),
        ('fingerprints', True),
    ]
    assert report['declared'] == json.loads(
        json.dumps(dict(class_names=CLASS_NAMES, preprocessing=asdict(PREPROCESSING)))
    )
    assert report['proofs'][-1].items() >= dict(identical=234, compensated=0, different=0, missing=0).items()
    assert set(report['left_out'].values()) == {"the optimizer's state"}
    assert report['source']['sha256'] == '0e14f861010eafe9026a9d878b1cd260f705cb311a15226e0fbc0235b5529989'


def test_preprocessing_is_that_of_keras(converted: Path, checkpoint: Checkpoint) -> None:
    """timm's transform from config.json gives the pixels that Keras' loader and preprocess_input give."""
    import keras
    from PIL import Image

    model = timm.create_model(f'local-dir:{converted}', pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    for photo in checkpoint.photos[:4]:
        loaded = keras.utils.img_to_array(keras.utils.load_img(photo, target_size=(150, 150)))
        expected = keras.applications.xception.preprocess_input(loaded).transpose(2, 0, 1)
        np.testing.assert_allclose(transform(Image.open(photo).convert('RGB')).numpy(), expected, atol=1e-6)


def test_tensors_are_the_files_arrays(converted: Path, checkpoint: Checkpoint) -> None:
    """One of each kind, read by hand."""
    with (
        zipfile.ZipFile(checkpoint.model) as archive,
        safetensors.safe_open(converted / 'model.safetensors', 'numpy') as tensors,
    ):
        file = h5py.File(io.BytesIO(archive.read('model.weights.h5')))
        layers = file['layers/functional/layers']
        for name, array in {
            'stem.conv1.weight': layers['conv2d/vars/0'][()].transpose(3, 2, 0, 1),
            'entry_flow.0.stack.conv1.conv_dw.weight': layers['separable_conv2d/vars/0'][()].transpose(2, 3, 0, 1),
            'stem.bn1.running_var': layers['batch_normalization/vars/3'][()],
            'head.fc.weight': file['layers/dense_1/vars/0'][()].T,
        }.items():
            np.testing.assert_array_equal(tensors.get_tensor(name), array)


# The official release, in the layout of Keras 1


def test_order_of_keras_1() -> None:
    """Keras created the residual normalizations before the others of their modules, or numbers would mislead."""
    norms = [name for name, layer in LAYERS.items() if layer.kind == 'bn']
    places = {name: number for number, name in enumerate(norms, 1) if 'residual' in name}
    assert places == dict(zip([f'block{block}_residual_bn' for block in (2, 3, 4, 13)], (3, 6, 9, 36)))
    others = [name for name in norms if 'residual' not in name]
    assert others == sorted(others, key=lambda name: [int(number) for number in re.findall(r'\d+', name)])


@pytest.fixture(scope='module', params=['with top', 'without top'])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like Keras' release."""
    import keras

    model = keras.applications.Xception(weights=None, include_top=request.param == 'with top')
    return keras1_file(randomised(model), tmp_path_factory.mktemp('release'), 1)


def test_release(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verified against Keras, which loads the file by itself; the directory serves as a source of the weights."""
    ported = port(release)
    small = replace(RELEASE_PREPROCESSING, image_size=(71, 96))
    parity = convert(ported, tmp_path / 'release', small)
    assert parity.passed
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(tmp_path / 'release'))
    classes = ported.model_args['num_classes']
    assert classes == (1000 if 'dense_3' in h5py.File(release) else 0)
    model = timm.create_model('xception_paper', pretrained=True, num_classes=classes)
    assert torch.equal(model.stem.conv1.weight, ported.tensors['stem.conv1.weight'])
    assert json.loads((tmp_path / 'release' / 'config.json').read_text())['keras']['final_activation'] == (
        'softmax' if classes else 'linear'
    )


def test_release_by_name(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    """`keras-imagenet` is downloaded into the cache, and converted with the preprocessing that is Keras' own."""
    (hub.root / 'files').mkdir(exist_ok=True)
    shutil.copy(release, hub.root / 'files' / release.name)
    entry = Release(f'{hub.url}/files/{release.name}', hashlib.md5(release.read_bytes()).hexdigest())
    monkeypatch.setitem(RELEASES, 'keras-imagenet', entry)
    monkeypatch.setattr('xception_hub.porting.port.fetch', partial(fetch, cache=tmp_path))
    ported = port('keras-imagenet')
    assert ported.source == tmp_path / release.name
    assert ported.is_release
    assert choose_preprocessing(ported) == RELEASE_PREPROCESSING
    assert choose_preprocessing(ported, size=331, interpolation='bilinear') == replace(
        RELEASE_PREPROCESSING, image_size=(331, 331), interpolation='bilinear'
    )


# What is refused


def outer(config: Any) -> list[Any]:
    return config['config']['layers']


def backbone(config: Any) -> list[Any]:
    return outer(config)[1]['config']['layers']


INPUT = dict(class_name='InputLayer', name='x', config=dict(batch_shape=[None, 96, 96, 3]), inbound_nodes=[])
POOL = dict(class_name='GlobalAveragePooling2D', name='pool', config={}, inbound_nodes=[[['x', 0, 0, {}]]])
ANOTHER = dict(layers=[INPUT, POOL], input_layers=[['x', 0, 0]], output_layers=[['pool', 0, 0]])
# A change of the config, and what the error names; damages of files are in test_fuzz.py.
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    'empty': (lambda c: c.clear(), 'not that of a Keras model'),
    'lambda': (lambda c: outer(c)[4].update(class_name='Lambda'), "the Lambda layer 'dropout' in the head"),
    'no layers': (lambda c: backbone(c).clear(), 'not that of a Keras model'),
    'another network': (lambda c: c['config'].update(ANOTHER), 'this is no Xception of Keras'),
    'unknown head': (lambda c: outer(c)[4].update(class_name='Conv1D'), "Conv1D layer 'dropout'"),
    'hidden softplus': (lambda c: outer(c)[3]['config'].update(activation='softplus'), "applies 'softplus' before"),
    'units': (lambda c: outer(c)[3]['config'].update(units=10**12), "layer 'dense' in the head has 1000000000000"),
    'rate': (lambda c: outer(c)[4]['config'].update(rate=1.5), "layer 'dropout' in the head has rate 1.5"),
    'small images': (lambda c: outer(c)[0]['config'].update(batch_shape=[None, 32, 32, 3]), 'its images are 32x32'),
    'no images': (
        lambda c: [layers[0]['config'].update(batch_shape=[None, 9]) for layers in (outer(c), backbone(c))],
        'has no input layer',
    ),
    'rescaling inside': (
        lambda c: backbone(c)[3].update(class_name='Rescaling'),
        "the Rescaling layer 'block1_conv1_act'",
    ),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_refused(kind: str, checkpoint: Checkpoint) -> None:
    """One clear error that names the file and the place."""
    with zipfile.ZipFile(checkpoint.model) as archive:
        config = json.loads(archive.read('config.json'))
    change, reason = REFUSED[kind]
    change(config)
    with pytest.raises(KerasFileError, match=rf'the file: .*{re.escape(reason)}'):
        parse(config, 'the file')


def test_flipped_bit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Among the weights; the archive's checksum tells it. Nothing stays beside the file."""
    content = bytearray(checkpoint.model.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / 'model.keras').write_bytes(content)
    with pytest.raises(KerasFileError, match='not a complete .keras archive'):
        port(tmp_path / 'model.keras')
    assert list(tmp_path.iterdir()) == [tmp_path / 'model.keras']


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda f: f.create_dataset('layers/extra/vars/0', data=np.zeros(3)), 'layers/extra/vars/0'),
        (lambda f: f['layers/conv2d/vars'].attrs.__setitem__('name', 'block9'), "called 'block9', not"),
    ],
)
def test_refused_weights(change: Callable[[h5py.File], Any], reason: str, tmp_path: Path) -> None:
    """An array too many, and a layer with another name than in the config."""
    import keras

    model = keras.applications.Xception(weights=None, classes=2, input_shape=(71, 71, 3))
    model.save_weights(tmp_path / 'model.weights.h5')
    (tmp_path / 'config.json').write_text(model.to_json())
    with h5py.File(tmp_path / 'model.weights.h5', 'r+') as file:
        change(file)
    with pytest.raises(KerasFileError, match=re.escape(reason)):
        port(tmp_path / 'model.weights.h5', tmp_path / 'config.json')


def test_hdf5_of_nothing(tmp_path: Path) -> None:
    h5py.File(tmp_path / 'weights.h5', 'w').close()
    with pytest.raises(KerasFileError, match="holds no layer called 'block1_conv1'"):
        port(tmp_path / 'weights.h5')
    (tmp_path / 'weights.h5').write_bytes(b'\x89HDF\r\n\x1a\n')
    with pytest.raises(KerasFileError, match='not a complete HDF5 file'):
        port(tmp_path / 'weights.h5')


# What never happens


def test_wrong_network_is_not_written(ported: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port with two tensors exchanged fails its verification, and leaves nothing behind."""
    names = ['middle_flow.0.stack.bn1.bias', 'middle_flow.1.stack.bn1.bias']
    tensors = {**ported.tensors, names[0]: ported.tensors[names[1]], names[1]: ported.tensors[names[0]]}
    monkeypatch.setattr(ported, 'tensors', tensors)
    with pytest.raises(ParityError, match='DIFFERENT from middle_flow.0 on'):
        convert(ported, tmp_path / 'out', PREPROCESSING)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the comparison, which these tests are not about."""
    proven = type('Proven', (Parity,), dict(passed=True))
    monkeypatch.setattr(convert_module, 'prove_parity', lambda *args: proven('', '', [], []))


def test_other_directories_are_left_alone(ported: Port, tmp_path: Path, quick: None) -> None:
    (tmp_path / 'letters.txt').write_text('precious')
    with pytest.raises(DirectoryError, match='files that are not a conversion'):
        convert(ported, tmp_path, PREPROCESSING)
    with pytest.raises(DirectoryError, match='is a file'):
        convert(ported, tmp_path / 'letters.txt', PREPROCESSING)
    assert [path.name for path in tmp_path.iterdir()] == ['letters.txt']


def test_a_failure_leaves_the_old_conversion(
    ported: Port, converted: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in the middle of writing: the directory is as it was."""
    shutil.copytree(converted, tmp_path / 'out')

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('xception_hub.directory.write.save_for_hf', fail)
    with pytest.raises(OSError, match='No space'):
        convert(ported, tmp_path / 'out', PREPROCESSING)
    assert {p.name for p in tmp_path.iterdir()} == {'out'}
    assert (tmp_path / 'out' / 'parity.json').read_text() == (converted / 'parity.json').read_text()


def test_without_keras(ported: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proofs that need none decide; confused normalizations fail them, and so does having no photo."""
    monkeypatch.setattr('xception_hub.porting.parity.keras_is_installed', lambda: False)
    parity = convert(ported, tmp_path / 'out', PREPROCESSING, CLASS_NAMES)
    assert (parity.reference, parity.proofs) == (None, [])
    report = json.loads((tmp_path / 'out' / 'parity.json').read_text())
    assert [(proof['proof'], proof['passed'], proof['decisive']) for proof in report['proofs']] == [
        ('tensors', True, True),
        ('settings and wires', True, False),
        ('moving statistics', True, True),
        ('residual normalizations', True, True),
        ('fingerprints', True, False),
    ]

    tensors = dict(ported.tensors)
    for kind in ('weight', 'bias', 'running_mean', 'running_var'):
        a, b = f'entry_flow.2.shortcut.bn.{kind}', f'entry_flow.2.stack.bn2.{kind}'
        tensors[a], tensors[b] = tensors[b], tensors[a]
    with pytest.raises(ParityError, match='residual normalizations: FAILED'):
        convert(replace(ported, tensors=tensors), tmp_path / 'wrong', PREPROCESSING)
    monkeypatch.setattr(convert_module, 'sample_photos', list)
    with pytest.raises(ParityError, match='pass --images'):
        convert(ported, tmp_path / 'unproven', PREPROCESSING)
    assert [path.name for path in tmp_path.iterdir()] == ['out']


# The command


def test_command(checkpoint: Checkpoint, converted: Path, tmp_path: Path) -> None:
    """The same directory as by the function, with the names from a file."""
    (tmp_path / 'names.txt').write_text('\n'.join(CLASS_NAMES) + '\n')
    options = ['--input-range', 'tf', '--interpolation', 'nearest', '--class-names']
    photos = checkpoint.photos[0].parent
    result = call(app, checkpoint.model, '-o', tmp_path / 'out', *options, tmp_path / 'names.txt', '--images', photos)
    assert result.returncode == 0, result.stderr
    assert '234 of 234 tensors of the backbone are bit-identical to those that Keras' in result.stdout
    for name in ('model.safetensors', 'config.json'):
        assert (tmp_path / 'out' / name).read_bytes() == (converted / name).read_bytes()


@pytest.mark.parametrize(
    ('args', 'reason'),
    [
        ('', 'Pass --input-range and --interpolation and --class-names'),
        ('--input-range tf --class-names none', 'Pass --interpolation;'),
        ('--input-range tf --interpolation nearest', 'Pass --class-names;'),
        ('--input-range tf --interpolation nearest --class-names a,b', '6 outputs, but 2 class names'),
        ('--input-range caffe', 'Choose from: "tf", "unit", "raw"'),
        ('--input-range tf --interpolation nearest --size 32', 'Must be >= 71'),
    ],
)
def test_command_asks_for_what_it_needs(args: str, reason: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    result = call(app, checkpoint.model, '-o', tmp_path / 'out', *args.split())
    assert result.returncode != 0
    assert reason in re.sub(r'[\s│]+', ' ', result.stderr + result.stdout)
    assert not (tmp_path / 'out').exists()
