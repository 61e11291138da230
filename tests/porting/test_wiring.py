"""What a config says inside Xception is that of figure 5, becomes an argument, or is refused: settings, wires, calls.

`benchmarks/keras_mutants.py` changes one thing after the other; those mutants that Keras itself computes are here.
"""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import torch
from commands import call
from keras_files import archive, flat_with_top, randomised, rewritten_config, weights_h5, weights_of_keras2, whole_h5
from old_keras_files import MAP, as_keras2

from benchmarks import keras_mutants as m
from benchmarks.keras_mutants import Mutant
from xception_hub import Xception
from xception_hub.errors import KerasFileError
from xception_hub.porting.figure5 import FIGURE5, widths
from xception_hub.porting.graph import FileLayer, read_calls
from xception_hub.porting.keras_model import build_keras, write_keras
from xception_hub.porting.layer_settings import NEUTRAL, SETTINGS, read_settings
from xception_hub.porting.names import LAYERS
from xception_hub.porting.output import write
from xception_hub.porting.parity import compare_with_keras, prove_parity
from xception_hub.porting.port import Port, port
from xception_hub.porting.preprocessing import Preprocessing
from xception_hub.porting.reference import BY_KERAS, BY_PORT, WEIGHTS_BY_KERAS, KerasReference
from xception_hub.porting.structure import parse


@pytest.fixture(scope='module')
def model() -> Any:
    return randomised(m.model())


@pytest.fixture(scope='module')
def base(model: Any) -> Any:
    return json.loads(model.to_json())


# The table


@pytest.mark.parametrize('include_top', [False, True])
def test_figure_5_is_the_xception_of_keras(include_top: bool) -> None:
    """Layer by layer, setting by setting, wire by wire; what Keras states of them is in one of the two tables."""
    shape = (None if not include_top else 299,) * 2
    built = keras.applications.Xception(weights=None, include_top=include_top, input_shape=(*shape, 3))
    entries = {entry['name']: entry for entry in json.loads(built.to_json())['config']['layers']}
    numbers = {stem: itertools.count() for stem in ('conv', 'bn', 'add')}
    blocks = {'conv': (2, 3, 4, 13), 'bn': (2, 3, 4, 13), 'add': range(2, 14)}
    stems = {'conv2d': 'conv', 'batch_normalization': 'bn', 'add': 'add'}
    roles = {'input_layer': 'input'}
    for name, entry in entries.items():  # in the order in which Keras creates the unnamed ones
        kind = next((kind for stem, kind in stems.items() if name.rstrip('0123456789').rstrip('_') == stem), '')
        if kind:
            block = blocks[kind][next(numbers[kind])]
            roles[name] = f'block{block}_add' if kind == 'add' else f'block{block}_residual_{kind}'
        elif entry['class_name'] == 'InputLayer':
            roles[name] = 'input'
        else:
            roles[name] = name
    found = {roles[name]: entry for name, entry in entries.items()}
    assert found.keys() - FIGURE5.keys() == {'input', *(('avg_pool', 'predictions') if include_top else ())}
    assert FIGURE5.keys() <= found.keys() and len(FIGURE5) == 131
    for role, node in FIGURE5.items():
        entry = found[role]
        config = entry['config']
        assert entry['class_name'] == node.class_name
        assert [name for name in config if name not in SETTINGS[node.class_name] and not NEUTRAL.fullmatch(name)] == []
        expected = {**SETTINGS[node.class_name], **node.settings}
        if role in LAYERS and 'filters' in expected:
            expected['filters'] = widths()[role]
        assert read_settings(node.class_name, config) == expected
        (made,) = read_calls(entry)
        assert [roles[tensor.layer] for tensor in made.tensors] == list(node.inputs)


def test_defaults_are_those_of_keras() -> None:
    """They hold where a config leaves a setting out."""
    arguments = {'Conv2D': (8, 3), 'SeparableConv2D': (8, 3), 'Activation': ('linear',), 'Dense': (8,)}
    arguments |= {'Reshape': ((8,),), 'Dropout': (0.1,), 'Rescaling': (2.0,), 'AveragePooling2D': (2,)}
    for class_name, known in SETTINGS.items():
        if class_name not in ('XceptionBackbone', 'operation'):
            layer = getattr(keras.layers, class_name)(*arguments.get(class_name, ()))
            found = read_settings(class_name, json.loads(json.dumps(layer.get_config())))
            required = {'filters', 'kernel_size', 'units', 'target_shape', 'rate'}
            required |= {'strides'} if 'pool_size' in known else {'scale'} if class_name == 'Rescaling' else set()
            assert {**found, **dict.fromkeys(required & found.keys())} == known


# The mutants


def test_mutants(base: Any) -> None:
    """All of the network as a whole, and a sample of the others, which differ in the layer alone."""
    counts: dict[str, int] = {}
    wrong = []
    for write_config in m.FORMATS.values():
        for mutant in m.mutants(base):
            counts[mutant.kind] = counts.get(mutant.kind, 0) + 1
            if mutant.kind in ('end', 'common') or counts[mutant.kind] % 23 == 0:
                config = write_config(m.mutated(base, mutant))
                if config != write_config(base):
                    found, why = m.verdict(config)
                    if found != mutant.converts or 'is not that of a Keras model' in why:
                        wrong.append((mutant.kind, mutant.name, found, why[:200]))
    assert wrong == []
    assert counts['setting'] > 1700 and counts['wire'] > 1000 and counts['call'] > 600


@pytest.mark.slow
def test_mutants_by_the_command() -> None:
    """All of them; the exit status is that none is wrong."""
    result = call(m.app)
    assert result.returncode == 0, result.stdout


# Files of three formats


def of_the_archive(file: Path, change: Callable[[Any], Any]) -> tuple[Path, None]:
    rewritten_config(file, lambda text: json.dumps(change(json.loads(text))))
    return file, None


def of_the_whole_h5(file: Path, change: Callable[[Any], Any]) -> tuple[Path, None]:
    with h5py.File(file, 'r+') as f:
        f.attrs['model_config'] = json.dumps(change(json.loads(f.attrs['model_config'])))
    return file, None


def of_the_config(file: Path, change: Callable[[Any], Any]) -> tuple[Path, Path]:
    """As tf.keras 2.12 writes it."""
    config = file.with_name('original.json')
    changed = file.with_name('config.json')
    changed.write_text(json.dumps(as_keras2(change(json.loads(config.read_text())))))
    return file, changed


FORMATS = {
    '.keras': (archive, of_the_archive),
    '.h5': (whole_h5, of_the_whole_h5),
    'config': (weights_of_keras2, of_the_config),
}


@pytest.fixture(scope='module', params=FORMATS)
def changed(request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Ports a file with a mutant's config, and leaves the file as it was."""
    folder = tmp_path_factory.mktemp('file')
    write_file, rewrite = FORMATS[request.param]
    file = write_file(model, folder)
    (folder / 'original.json').write_text(model.to_json())
    original = json.loads(model.to_json())

    def ported(mutant: Mutant) -> Port:
        return port(*rewrite(file, lambda _: m.mutated(original, mutant)))

    return ported


OWN = dict(module='own', registered_name='own>Pool')
REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    'stem stride 1': (m.replaced('block1_conv1', strides=[1, 1]), r"'block1_conv1'.* strides \[1, 1\].*it is \[2, 2\]"),
    'padding': (m.replaced('block1_conv2', padding='same'), "'block1_conv2'.* padding 'same'.*'valid'"),
    'dilation': (m.replaced('block14_sepconv1', dilation_rate=[2, 2]), r'dilation_rate \[2, 2\]'),
    'one selu': (m.replaced('block9_sepconv2_act', activation='selu'), "'block9_sepconv2_act'.*'selu'.*'relu'"),
    'relu in a convolution': (m.replaced('block1_conv2', activation='relu'), "activation 'relu'.*'linear'"),
    'depth multiplier': (m.replaced('block5_sepconv1', depth_multiplier=2), 'depth_multiplier 2'),
    'one epsilon': (m.replaced('block5_sepconv1_bn', epsilon=1e-5), 'epsilon 1e-05.*it is 0.001'),
    'axis': (m.replaced('block5_sepconv1_bn', axis=1), 'axis 1'),
    'pool size': (m.replaced('block3_pool', pool_size=[2, 2]), r"'block3_pool'.*pool_size \[2, 2\]"),
    'average pooling': (m.as_class('block3_pool', 'AveragePooling2D'), "AveragePooling2D layer 'block3_pool'"),
    'without block 6': (m.rewired('block7_sepconv1_act', 'block6_sepconv3_bn'), "'block7_sepconv1_act'.*6_sepconv3_bn"),
    'an activation missing': (m.without('block9_sepconv2_act'), "takes 'block9_sepconv1_bn'. The file has"),
    'called twice': (m.twice('block9_sepconv2'), "'block9_sepconv2' is called 2 times"),
    'normalization in training': (m.called('block9_sepconv2_bn', training=True), 'training=True'),
    'own class': (lambda layers, config: layers['block3_pool'].update(OWN), 'own>Pool'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(
    name: str, changed: Callable[..., Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name: the layer, the setting, what it is, what Keras' Xception has. Keras is not needed for it."""
    monkeypatch.setitem(sys.modules, 'keras', None)
    change, reason = REFUSED[name]
    if name == 'own class' and request.node.callspec.params['changed'] == 'config':
        return  # tf.keras 2.12 does not say it
    with pytest.raises(KerasFileError, match=reason):
        changed(Mutant('', name, change))


@pytest.mark.parametrize(
    'name',
    ['the backbone (training=True)', 'the dropout of the head (training=True)', 'two residuals of a module before'],
)
def test_refused_of_the_whole(name: str, base: Any, changed: Callable[..., Any]) -> None:
    mutant = next(mutant for mutant in m.mutants(base) if mutant.name == name)
    with pytest.raises(KerasFileError, match='training=True' if 'training' in name else 'Add layer'):
        changed(mutant)


UNKNOWN = {'class_name': 'Unknown', 'config': {}}
CONVERTED = {
    'epsilon': (m.all_of('BatchNormalization', epsilon=1e-5), dict(bn_eps=1e-5)),
    'activation': (m.all_of('Activation', activation='selu'), dict(act_layer='selu')),
    'initializers': (
        lambda layers, config: [
            entry['config'].update(dict.fromkeys([key for key in entry['config'] if 'initializer' in key], UNKNOWN))
            for entry in layers.values()
        ],
        {},
    ),
    'build config': (
        lambda layers, config: [entry.update(build_config={'input_shape': 7}) for entry in layers.values()],
        {},
    ),
    'momentum': (m.all_of('BatchNormalization', momentum=0.5), {}),
}


@pytest.mark.parametrize('kind', CONVERTED)
def test_converted(kind: str, changed: Callable[..., Any]) -> None:
    """What has an argument of the network, or changes nothing, converts; Keras reads it by itself and agrees."""
    change, arguments = CONVERTED[kind]
    ported = changed(Mutant('', kind, change))
    assert ported.model_args == dict(num_classes=3, global_pool='avg', in_chans=3, drop_rate=0.2) | arguments
    reference = KerasReference(ported)
    assert reference.reading == BY_KERAS
    assert compare_with_keras(reference, ported.model(), (MAP, MAP)).first_wrong is None


@pytest.mark.parametrize('kind', ['epsilon', 'activation'])
def test_there_and_back(kind: str, base: Any, model: Any, tmp_path: Path) -> None:
    """The prediction of Keras, of the network, and of what returns to Keras."""
    change, arguments = CONVERTED[kind]
    built = keras.models.model_from_json(json.dumps(m.mutated(base, Mutant('', kind, change))))
    built.set_weights(model.get_weights())
    ported = port(archive(built, tmp_path))
    assert ported.structure.arguments == arguments
    images = np.random.default_rng(0).uniform(-1, 1, (2, MAP, MAP, 3)).astype(np.float32)
    expected = built.predict(images, verbose=0)
    with torch.inference_mode():
        logits = ported.model()(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)
    write(
        tmp_path / 'model',
        ported,
        ported.model(),
        prove_parity(ported, ported.model(), [(MAP, MAP)]),
        Preprocessing('tf', (MAP, MAP), 'bilinear'),
        None,
    )
    write_keras(*build_keras(tmp_path / 'model'), tmp_path / 'back.keras')
    back = keras.models.load_model(tmp_path / 'back.keras').predict(images, verbose=0)
    assert np.linalg.norm(back - expected) < 1e-5 * np.linalg.norm(expected)
    assert port(tmp_path / 'back.keras').model_args == ported.model_args


def test_hidden_layers_beside_another_activation(base: Any) -> None:
    """The activation of the backbone is not that of the head."""
    config = m.mutated(base, Mutant('', '', m.all_of('Activation', activation='elu')))
    dense = config['config']['layers'][-1]
    hidden = json.loads(json.dumps(dense).replace(f'"{dense["name"]}"', '"hidden"'))
    hidden['config']['activation'] = 'relu'
    m.tensors(dense)[0]['keras_history'] = ['hidden', 0, 0]
    config['config']['layers'].insert(-1, hidden)
    structure = parse(config, 'x')
    args = structure.head.model_args(structure.arguments['act_layer'])
    assert args['head_layers'][1:] == [{'fc': 3}, {'act': 'relu'}] and 'fc_widths' not in args


# Ways out


def test_way_out_for_the_arrays(base: Any, model: Any, tmp_path: Path) -> None:
    """The code that the refusal names makes Keras' own Xception of the arrays."""
    config = m.mutated(base, Mutant('', '', REFUSED['dilation'][0]))
    built = keras.models.model_from_json(json.dumps(config))
    built.set_weights(model.get_weights())
    with pytest.raises(KerasFileError) as error:
        port(archive(built, tmp_path))
    code = str(error.value).partition('in Keras, ')[2].partition(', where')[0]
    exec(code.replace("'x.keras'", repr(str(tmp_path / 'x.keras'))), dict(keras=keras, m=built.layers[1]))
    ported = port(tmp_path / 'x.keras')
    kernel = built.layers[1].get_layer('block1_conv1').get_weights()[0]
    assert np.array_equal(ported.tensors['stem.conv1.weight'].numpy(), kernel.transpose(3, 2, 0, 1))


def test_way_out_for_a_call(tmp_path: Path) -> None:
    """The same model without the argument, with the arrays of the old one."""

    def build(**arguments: Any) -> Any:
        base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), pooling='avg')
        return keras.Model(base.input, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(base.output, **arguments)))

    old = build(training=True)
    with pytest.raises(KerasFileError, match='Dropout layer .*training=True.* new.set_weights'):
        port(archive(old, tmp_path))
    new = build()
    new.set_weights(old.get_weights())
    assert port(archive(new, tmp_path)).model_args['num_classes'] == 2


def test_dilated_in_keras(tmp_path: Path) -> None:
    """A stride of 1 pools other windows of an even map than `output_stride` does, which is why it is refused."""
    backbone = randomised(keras.applications.Xception(weights=None, include_top=False))
    config = json.loads(backbone.to_json())
    changes = {role: dict(strides=[1, 1]) for role in ('block13_pool', 'block13_residual_conv')}
    changes |= {role: dict(dilation_rate=[2, 2]) for role in ('block14_sepconv1', 'block14_sepconv2')}
    roles = {layer.name: role for role, layer in parse(config, 'x').roles.items()}
    for entry in config['config']['layers']:
        entry['config'].update(changes.get(roles.get(entry['config']['name'], ''), {}))
    with pytest.raises(KerasFileError, match=r"'block13_pool'.* strides \[1, 1\]|block13_residual_conv.*strides"):
        parse(config, 'x')
    dilated = keras.models.model_from_json(json.dumps(config))
    dilated.set_weights(backbone.get_weights())
    network = Xception(num_classes=0, global_pool='', output_stride=16).eval()
    network.load_state_dict(port(archive(backbone, tmp_path)).model().state_dict())
    differences = []
    for size in (71, 98):  # module 13 takes maps of 5 and of 6
        images = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
        expected = keras.ops.convert_to_numpy(dilated(images, training=False)).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            found = network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
        places = expected - expected.mean((2, 3), keepdims=True)  # random weights make them much alike
        differences.append(np.linalg.norm(found - expected) / np.linalg.norm(places))
    assert differences[0] < 2e-5 and differences[1] > 2e-4, differences  # 6e-6 and 7e-4


# What a proof says


def test_config_of_tf_keras_in_the_file(model: Any, tmp_path: Path) -> None:
    """Keys that the Keras of today refuses do not take the oracle away."""
    file = whole_h5(model, tmp_path)
    ported = port(*of_the_whole_h5(file, as_keras2))
    with h5py.File(file) as f, pytest.raises(TypeError):
        keras.models.model_from_json(f.attrs['model_config'])
    assert KerasReference(ported).reading == BY_KERAS


def test_what_is_shown_of_weights_alone(tmp_path: Path) -> None:
    """Their settings and wires are not known, and no result is called equal that rests on the port's own arrays."""
    model = randomised(flat_with_top())
    for write_file, reading in ((weights_h5, WEIGHTS_BY_KERAS), (weights_of_keras2, BY_PORT)):
        ported = port(write_file(model, tmp_path))
        parity = prove_parity(ported, ported.model(), [(MAP, MAP)])
        report, data = parity.report(), parity.as_dict()
        assert all(proof.first_wrong is None for proof in parity.proofs)
        assert str(data['reading']).startswith(reading)
        assert 'settings and wires: NOTE, not known: the file holds weights alone' in report
        by_keras = reading == WEIGHTS_BY_KERAS
        results = {proof['result'] for proof in data['proofs'] if proof['proof'] == 'Keras'}
        assert (results == {'equal'}) == by_keras == ('does not show that the file' not in report)
        assert data['by_keras'] == by_keras


def test_layers_are_read_in_any_order(base: Any) -> None:
    """The graph says what is what; names and order do not."""
    config = m.mutated(base, Mutant('', '', lambda _, config: m.backbone_of(config)['config']['layers'].reverse()))
    text = json.dumps(config).replace('block5_sepconv1', 'block_x').replace('block6_sepconv1', 'block5_sepconv1')
    structure = parse(json.loads(text.replace('block_x', 'block6_sepconv1')), 'x')
    found: dict[str, FileLayer] = structure.layers
    assert (found['block5_sepconv1'].name, found['block6_sepconv1'].name) == ('block6_sepconv1', 'block5_sepconv1')
