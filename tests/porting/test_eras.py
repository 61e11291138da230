"""Files as people of each era of Keras wrote them: the right tensors, or a true refusal with a way out."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import timm
import torch
from keras_files import (
    SIZE,
    archive,
    assert_computes_the_same,
    assert_same,
    flat_with_head,
    flat_with_top,
    flat_without_top,
    nested,
    randomised,
    weights_of_keras2,
    whole_h5_of_keras2,
)
from old_keras_files import (
    HEADS,
    MAP,
    Change,
    L,
    again,
    head_of,
    keras1_file,
    nested_for_operations,
    renamed,
    shifted,
    with_operations,
)

from conversion import convert, prove
from xception_hub.errors import KerasFileError
from xception_hub.porting.declared import choose_preprocessing
from xception_hub.porting.keras_model import build_keras, write_keras
from xception_hub.porting.output import write
from xception_hub.porting.parity import Parity, prove_parity
from xception_hub.porting.port import port
from xception_hub.porting.preprocessing import Preprocessing
from xception_hub.porting.reference import BY_KERAS, BY_PORT, POOLED
from xception_hub.porting.structure import parse

NOTHING_PROVEN = Parity(None, None, [], [])


@pytest.fixture(scope='module')
def flat_head() -> Any:
    return randomised(flat_with_head())


@pytest.fixture(scope='module')
def nested_model() -> Any:
    return randomised(nested())


# Names


@pytest.mark.parametrize('write_file', [weights_of_keras2, whole_h5_of_keras2], ids=lambda f: f.__name__)
@pytest.mark.parametrize('kind', ['flat_head', 'nested_model'])
def test_model_that_was_built_twice(
    kind: str, write_file: Callable[[Any, Path], Path], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(kind)
    file = renamed(write_file(model, tmp_path), owner=again)
    (tmp_path / 'config.json').write_text(model.to_json())
    ported = port(file, tmp_path / 'config.json' if write_file is weights_of_keras2 else None)
    assert_same(ported, model)
    assert ported.misplaced == []


@pytest.mark.parametrize('model', [flat_with_top, flat_without_top])
def test_weights_alone_of_a_model_that_was_built_twice(model: Callable[[], Any], tmp_path: Path) -> None:
    built = randomised(model())
    assert_same(port(renamed(weights_of_keras2(built, tmp_path), owner=again)), built)


@pytest.mark.parametrize('number', [shifted, lambda name: shifted(name, 7)])
@pytest.mark.parametrize('kind', ['flat_head', 'nested_model'])
def test_config_of_today(kind: str, number: Change, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Numbers that Keras gives are no identity: class and order are."""
    model = request.getfixturevalue(kind)
    file = renamed(weights_of_keras2(model, tmp_path), group=number, owner=number)
    (tmp_path / 'config.json').write_text(model.to_json())
    ported = port(file, tmp_path / 'config.json')
    assert_same(ported, model)
    assert ported.misplaced == []


def test_other_layers_than_the_config(flat_head: Any, tmp_path: Path) -> None:
    """Which is which cannot be told."""
    file = renamed(weights_of_keras2(flat_head, tmp_path), group=shifted, owner=shifted)
    with h5py.File(file, 'r+') as f:
        first = next(name for name in f if name.startswith('dense_'))  # its number depends on what was built before
        f.copy(f[first], f, 'dense_99')
        names = [text.encode() if isinstance(text, str) else text for text in f.attrs['layer_names']]
        f.attrs['layer_names'] = np.array([*names, b'dense_99'])
    (tmp_path / 'config.json').write_text(flat_head.to_json())
    with pytest.raises(KerasFileError, match=r'layers called dense and a number .*which is which cannot be told'):
        port(file, tmp_path / 'config.json')


@pytest.mark.parametrize('prefix', ['first_', 'first/'])
def test_layers_renamed_for_an_ensemble(prefix: str, tmp_path: Path) -> None:
    """With a prefix for all, in the file and in its config; a slash in it makes groups within groups."""
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3), pooling='avg')
    model = randomised(keras.Model(base.input, keras.layers.Dense(3)(base.output)))
    config = model.to_json()
    for layer in model.layers:
        config = config.replace(f'"{layer.name}"', f'"{prefix}{layer.name}"')
    (tmp_path / 'config.json').write_text(config)
    file = renamed(weights_of_keras2(model, tmp_path), group=lambda name: prefix + name)
    assert_same(port(file, tmp_path / 'config.json'), model)


def test_one_group_around_all(flat_head: Any, tmp_path: Path) -> None:
    """As `multi_gpu_model` saved it."""
    file = weights_of_keras2(flat_head, tmp_path)
    with h5py.File(file) as old, h5py.File(tmp_path / 'one.h5', 'w') as new:
        arrays = []
        for name in old.attrs['layer_names']:
            name = name.decode() if isinstance(name, bytes) else name
            for array in old[name].attrs['weight_names']:
                arrays.append(array if isinstance(array, bytes) else array.encode())
                new[f'model_1/{arrays[-1].decode()}'] = old[name][array][()]
        new['model_1'].attrs['weight_names'] = np.array(arrays)
        new.create_group('lambda_1').attrs['weight_names'] = np.zeros(0)
        new.attrs['layer_names'] = np.array([b'lambda_1', b'model_1'])
    (tmp_path / 'config.json').write_text(flat_head.to_json())
    assert_same(port(tmp_path / 'one.h5', tmp_path / 'config.json'), flat_head)


def test_random_generators_within_a_model(tmp_path: Path) -> None:
    """Have arrays in the same group, which take no part in the order."""
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), pooling='avg')
    x = L.Dense(4, activation='relu')(L.Dropout(0.5)(base.output))
    inner = randomised(keras.Model(base.input, L.Dense(3)(L.Dropout(0.5)(x))))
    ported = port(whole_h5_of_keras2(keras.Sequential([keras.Input((MAP, MAP, 3)), inner]), tmp_path))
    assert_same(ported, inner)
    assert ported.misplaced == []


def test_swapped_names_are_caught(nested_model: Any, tmp_path: Path) -> None:
    """Two layers whose arrays have each other's names: the order in which Keras lists them says something else."""
    swap = {'block5_sepconv1': 'block6_sepconv1', 'block6_sepconv1': 'block5_sepconv1'}
    file = renamed(whole_h5_of_keras2(nested_model, tmp_path), owner=lambda name: swap.get(name, name))
    ported = port(file)
    assert [one.split('/')[-2] for one, _ in ported.misplaced or []] == ['block5_sepconv1'] * 2 + [
        'block6_sepconv1'
    ] * 2
    parity = prove_parity(ported, ported.model(), [(SIZE, SIZE)])
    assert not parity.passed


def test_order_of_a_group_alone(tmp_path: Path) -> None:
    """Layers with names of their own within another model: their order depends on what was frozen."""
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), pooling='avg')
    own = keras.models.clone_model(base, clone_function=_renamed_layer)
    for layer in own.layers[40:60]:
        layer.trainable = False
    inputs = keras.Input((MAP, MAP, 3))
    model = randomised(keras.Model(inputs, L.Dense(3)(own(inputs))))
    file = weights_of_keras2(model, tmp_path)
    with pytest.raises(KerasFileError, match='names of their own, in a group whose order .* Pass --config FILE'):
        port(file)
    (tmp_path / 'config.json').write_text(model.to_json())
    ported = port(file, tmp_path / 'config.json')
    assert ported.misplaced == []
    images = np.random.default_rng(0).uniform(-1, 1, (2, MAP, MAP, 3)).astype(np.float32)
    with torch.inference_mode():
        logits = ported.model()(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        torch.testing.assert_close(logits, torch.as_tensor(model(images, training=False)).cpu(), rtol=1e-4, atol=1e-5)


def _renamed_layer(layer: Any) -> Any:
    return type(layer).from_config(dict(layer.get_config(), name=f'l{zlib.crc32(layer.name.encode())}'))


# Keras 1


@pytest.mark.parametrize(('start', 'named'), [(1, False), (41, False), (1, True), (3, True)])
def test_weights_of_keras_1(start: int, named: bool, tmp_path: Path) -> None:
    """By their numbers, which rise in the order of creation; `running_std` is the variance."""
    model = randomised(flat_with_top())
    file = keras1_file(model, tmp_path, start, named)
    ported = port(file)
    assert_same(ported, model)
    assert (ported.model_args['num_classes'], ported.final_activation) == (7, 'unknown')
    with pytest.raises(KerasFileError, match='Pass --input-range and --interpolation and --size and --class-names'):
        choose_preprocessing(ported, class_names=None)  # nothing of the release is assumed
    if named:  # as whoever used Keras' own network had it
        (tmp_path / 'config.json').write_text(model.to_json())
        assert_same(port(file, tmp_path / 'config.json'), model)


# Containers


def test_content_decides(flat_head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An HDF5 file called .keras or .model, an archive called .h5; in the user's home directory."""
    monkeypatch.setenv('HOME', str(tmp_path))
    for write_file, name in ((whole_h5_of_keras2, 'a.keras'), (whole_h5_of_keras2, 'b.model'), (archive, 'c.h5')):
        write_file(flat_head, tmp_path).rename(tmp_path / name)
        assert_same(port(f'~/{name}'), flat_head)


@pytest.mark.parametrize(
    ('make', 'reason'),
    [
        (lambda p: ((p / 'x').mkdir(), (p / 'x' / 'checkpoint').write_text('')), 'latest_checkpoint.*save'),
        (lambda p: None, 'There is no file .*/x. A source is'),
        (lambda p: (p / 'x').write_text('hello'), 'is no file of Keras. A source is'),
    ],
)  # fmt: skip
def test_other_files(make: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(KerasFileError, match=reason):
        port(tmp_path / 'x')


# Classes of their time


def test_batch_normalization_of_tensorflow_1(flat_head: Any, tmp_path: Path) -> None:
    file = whole_h5_of_keras2(flat_head, tmp_path)
    with h5py.File(file, 'r+') as f:
        f.attrs['model_config'] = f.attrs['model_config'].replace('"BatchNormalization"', '"BatchNormalizationV1"')
    assert_same(port(file), flat_head)


@pytest.mark.parametrize(
    ('operations', 'rescaling'),
    [
        ([('RealDiv', {'1': 127.5}), ('Sub', {'1': 1.0})], (1 / 127.5, -1)),
        ([('Mul', {'0': 2.0}), ('AddV2', {'1': -1.0})], (2, -1)),
        ([('Sub', {'0': 255.0})], (-1, 255)),
        ([('Sub', {'1': [1.0, 2.0, 3.0]})], ((1.0, 1.0, 1.0), (-1.0, -2.0, -3.0))),
    ],
)
def test_operations_of_tensorflow(operations: Any, rescaling: Any, tmp_path: Path) -> None:
    """Keras computes the same, by operations of its own; it has none that takes a list."""
    model = randomised(nested_for_operations())
    (tmp_path / 'config.json').write_text(with_operations(*operations))
    ported = port(weights_of_keras2(model, tmp_path), tmp_path / 'config.json')
    assert_same(ported, model)
    for found, expected in zip(ported.structure.rescaling, rescaling):
        assert found == pytest.approx(expected)
    assert_computes_the_same(ported, BY_PORT if isinstance(rescaling[0], tuple) else BY_KERAS)


@pytest.mark.parametrize(
    ('operation', 'call', 'error'),
    [
        (('RealDiv', {'0': 2.0}), {}, 'before Xception divides 2.0 by the images'),
        (('RealDiv', {'1': [1.0, 0.0, 1.0]}), {}, 'divides by'),
        (('Sub', {'1': 2.0}), {'y': 3.0}, 'before Xception cannot be converted'),
        (('Sub', {'0': 1.0, '1': 2.0}), {}, 'before Xception cannot be converted'),
        (('Sub', {'-1': 2.0}), {}, 'is not that of a Keras model'),
        (('Maximum', {'1': 2.0}), {}, 'before Xception cannot be converted'),
    ],
)
def test_operations_that_do_not_rescale(operation: Any, call: dict[str, float], error: str, tmp_path: Path) -> None:
    text = with_operations(operation).replace('0, 0, {}', f'0, 0, {json.dumps(call)}')
    with pytest.raises(KerasFileError, match=error):
        parse(json.loads(text), 'model')


@pytest.mark.parametrize(
    ('prepare', 'rescaling'),
    [
        (lambda x: 255.0 - x, (-1, 255)), (lambda x: 2.0 * x - 1.0, (2, -1)), (lambda x: 1.0 + x, (1, 1)),
        (lambda x: x * 3.0 + 2.0, (3, 2)), (lambda x: x / 4.0, (0.25, 0)), (lambda x: x - 3.0, (1, -3)),
    ],
)  # fmt: skip
def test_signs_of_operands(prepare: Callable[[Any], Any], rescaling: tuple[float, float], tmp_path: Path) -> None:
    """Each on its own side, and Keras computes the same."""
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), pooling='avg')
    inputs = keras.Input((MAP, MAP, 3))
    ported = port(archive(randomised(keras.Model(inputs, keras.layers.Dense(2)(base(prepare(inputs))))), tmp_path))
    assert ported.structure.rescaling == pytest.approx(rescaling)
    if rescaling in ((-1, 255), (2, -1)):  # numbers before the images
        assert_computes_the_same(ported)


@pytest.mark.parametrize('each', [False, True], ids=['all channels', 'each channel'])
@pytest.mark.parametrize('arguments', [False, True], ids=['arrays', 'arguments'])
def test_normalization(each: bool, arguments: bool, tmp_path: Path) -> None:
    """As the guide of 2020 has it: mean and variance become part of the preparation of images, and return to Keras."""
    mean = np.array([120.0, 110.0, 100.0] if each else [127.5] * 3)
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), pooling='avg')
    inputs = keras.Input((MAP, MAP, 3))
    layer = keras.layers.Normalization(**(dict(mean=mean, variance=mean**2) if arguments else {}))
    model = randomised(keras.Model(inputs, keras.layers.Dense(2)(base(layer(inputs)))))
    if not arguments:
        layer.adapt(np.stack([0 * mean, 2 * mean]).reshape(1, 1, 2, 3))
    ported = port(archive(model, tmp_path))
    scale, offset = ported.structure.rescaling
    assert np.broadcast_to(scale, 3) == pytest.approx(1 / mean)
    assert np.broadcast_to(offset, 3) == pytest.approx([-1] * 3)
    assert isinstance(scale, tuple) == each
    if not each or arguments:
        return
    assert_computes_the_same(ported)
    preprocessing = Preprocessing('raw', (MAP, MAP), 'bilinear', rescaling=ported.structure.rescaling)
    write(tmp_path / 'model', ported, ported.model(), NOTHING_PROVEN, preprocessing, None)
    cfg = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True).pretrained_cfg
    assert cfg['mean'] == pytest.approx(mean / 255) and cfg['std'] == pytest.approx(mean / 255)
    write_keras(*build_keras(tmp_path / 'model'), tmp_path / 'back.keras')
    back = port(tmp_path / 'back.keras')
    assert [list(np.ravel(value)) for value in back.structure.rescaling] == [
        list(np.ravel(scale)),
        list(np.ravel(offset)),
    ]


# Heads


@pytest.mark.parametrize('kind', HEADS)
def test_heads(kind: str, tmp_path: Path) -> None:
    """Keras and the network compute the same; Keras' last activation stays Keras'."""
    layers, arguments = HEADS[kind]
    model = head_of(*layers())
    ported = port(archive(model, tmp_path))
    assert_same(ported, model)
    assert ported.model_args == {**dict(num_classes=3, global_pool='avg', in_chans=3), **arguments}
    images = np.random.default_rng(0).uniform(-1, 1, (2, MAP, MAP, 3)).astype(np.float32)
    with torch.inference_mode():
        logits = ported.model()(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        expected = torch.as_tensor(model(images, training=False)).cpu()
    found = {'linear': lambda x: x, 'softmax': lambda x: x.softmax(1), 'relu': torch.relu, 'tanh': torch.tanh}
    torch.testing.assert_close(found[ported.final_activation](logits), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['norm before pooling', 'hidden softmax', 'flattened with hidden layers'])
def test_heads_there_and_back(kind: str, tmp_path: Path) -> None:
    """They are proven as any other; the arrays return to Keras bit by bit; timm uses them as it does."""
    ported = port(archive(head_of(*HEADS[kind][0]()), tmp_path))
    assert_computes_the_same(ported)
    write(tmp_path / 'model', ported, ported.model(), NOTHING_PROVEN, Preprocessing('tf', (MAP, MAP), 'bilinear'), None)
    write_keras(*build_keras(tmp_path / 'model'), tmp_path / 'back.keras')
    back = port(tmp_path / 'back.keras')
    assert (back.model_args, back.final_activation) == (ported.model_args, ported.final_activation)
    assert all(torch.equal(tensor, ported.tensors[name]) for name, tensor in back.tensors.items())
    with torch.inference_mode():
        network = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True).eval()
        x = torch.rand(1, 3, MAP, MAP)
        assert torch.equal(network(x), network.forward_head(network.forward_features(x)))
        assert network.forward_head(network.forward_features(x), pre_logits=True).shape == (1, network.head_hidden_size)


@pytest.mark.parametrize('kind', ['flattened', 'pooling of the whole map'])
def test_heads_of_one_size_by_the_commands(kind: str, tmp_path: Path) -> None:
    """Convert and prove compare them at their size alone; another one is refused."""
    file = str(archive(head_of(*HEADS[kind][0]()), tmp_path))
    options: dict[str, Any] = dict(input_range='tf', interpolation='bilinear', class_names=['none'])
    with pytest.raises(SystemExit, match=r'takes images of \(71, 71\) pixels alone. Leave out --size'):
        convert.main(file, output=tmp_path / 'model', size=96, **options)
    convert.main(file, output=tmp_path / 'model', **options)
    report = json.loads((tmp_path / 'model' / 'parity.json').read_text())
    assert report['passed'] and {tuple(p['size']) for p in report['proofs'] if p['proof'] == 'Keras'} == {(MAP, MAP)}
    prove.main(file, tmp_path / 'model', sizes=(71, 96))


def test_a_flattened_head_takes_one_size(tmp_path: Path) -> None:
    network = timm.create_model('xception_paper', num_classes=3, head_layers=[{'flatten': [3, 3]}, {'fc': 16}]).eval()
    assert network(torch.rand(1, 3, 96, 96)).shape == (1, 3)
    with pytest.raises(ValueError, match='takes feature maps of 3x3, not 4x4. Resize the images'):
        network(torch.rand(1, 3, 128, 128))
    network.reset_classifier(5)
    assert network(torch.rand(1, 3, 96, 96)).shape == (1, 5)
    network.reset_classifier(4, 'max')
    assert network(torch.rand(1, 3, 128, 128)).shape == (1, 4) and network.head_hidden_size == 2048
    state = timm.create_model('xception_paper', num_classes=3, head_layers=[{'flatten': [3, 3]}]).state_dict()
    torch.save(state, tmp_path / 'x.pth')
    import xception_hub

    assert xception_hub.from_checkpoint(tmp_path / 'x.pth')(torch.rand(1, 3, 96, 96)).shape == (1, 3)


def two_outputs() -> Any:
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), pooling='avg')
    inputs = keras.Input((MAP, MAP, 3))
    x = base(inputs)
    kind = L.Dense(3, name='kind')(L.Dense(8, activation='relu')(x))
    return randomised(keras.Model(inputs, [kind, L.Dense(1, name='age', activation='relu')(x)]))


@pytest.mark.parametrize('write_file', [archive, whole_h5_of_keras2], ids=lambda f: f.__name__)
def test_one_output_of_several(write_file: Callable[[Any, Path], Path], tmp_path: Path) -> None:
    """Is named; the arrays of the other are listed as left out."""
    model = two_outputs()
    file = write_file(model, tmp_path)
    with pytest.raises(KerasFileError, match='2 outputs. Choose one .* --output-layer: kind, age'):
        port(file)
    with pytest.raises(KerasFileError, match="has no layer 'sex'; its outputs are kind, age"):
        port(file, output_layer='sex')
    for name, classes, left in (('kind', 3, 2), ('age', 1, 4)):
        ported = port(file, output_layer=name)
        kernel = model.get_layer(name).get_weights()[0]
        assert np.array_equal(ported.tensors['head.fc.weight'].numpy(), kernel.T)
        assert ported.model_args['num_classes'] == classes
        assert list(ported.left_out.values()).count('of another output') == left
    assert_computes_the_same(ported)  # the whole model, watched at the chosen output


@pytest.mark.parametrize('nested_in', ['the model', 'a model within'])
def test_without_the_layer_in_front(nested_in: str, tmp_path: Path) -> None:
    """The code that the refusal names keeps the head, and what it saves converts."""
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), pooling='avg')
    inputs = keras.Input((MAP, MAP, 3))
    if nested_in == 'the model':
        x = base(L.ZeroPadding2D(0, name='pad')(inputs))
    else:
        inner = keras.Input((MAP, MAP, 3))
        x = keras.Model(inner, base(L.ZeroPadding2D(0, name='pad')(inner)))(inputs)
    model = randomised(keras.Model(inputs, L.Dense(3)(x) if nested_in == 'the model' else x))
    with pytest.raises(KerasFileError, match='ZeroPadding2D layer .* before Xception cannot be converted') as error:
        port(archive(model, tmp_path))
    code = str(error.value).partition('in Keras, save ')[2].rpartition(', which')[0]
    ported = port(archive(eval(code, dict(keras=keras, model=model)), tmp_path))
    assert ported.model_args['num_classes'] == (3 if nested_in == 'the model' else 0)


def test_a_repeated_model(tmp_path: Path) -> None:
    """TimeDistributed is named with its own model, which converts."""
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), pooling='avg')
    inputs = keras.Input((4, MAP, MAP, 3))
    x = L.TimeDistributed(randomised(base), name='frames')(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(x)))
    with pytest.raises(KerasFileError, match=r"TimeDistributed .*'frames'.* model.get_layer\('frames'\).layer"):
        port(archive(model, tmp_path))
    assert_same(port(archive(model.get_layer('frames').layer, tmp_path)), base)


def test_a_reference_that_fails(flat_head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not a proof, and no traceback."""
    ported = port(archive(flat_head, tmp_path))
    monkeypatch.setitem(POOLED, 'avg', lambda maps: [][0])
    parity = prove_parity(ported, ported.model(), [(SIZE, SIZE)])
    assert not parity.passed
    assert 'comparison with Keras: FAILED, not shown: Keras fails: IndexError' in parity.report()


def test_config_of_keras_1(flat_head: Any, tmp_path: Path) -> None:
    file = keras1_file(randomised(flat_with_top()), tmp_path, 1)
    with h5py.File(file, 'r+') as f:
        f.attrs['model_config'] = flat_head.to_json().replace('"Conv2D"', '"Convolution2D"')
    with pytest.raises(KerasFileError, match='Keras 1 wrote its config, which is not read. Add --config FILE'):
        port(file)
