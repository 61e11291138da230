"""python benchmarks/keras_mutants.py

Changes one thing after the other that a Keras config says of Xception: each setting of each layer, each wire, each
call, each class, each output. Prints how many of these mutants are refused and how many convert. A mutant that computes
something else has to be refused, or to become an argument of the network; one that computes the same has to convert.
`--run` also has Keras compute some of them, and prints how far they are from Keras' Xception with the same arrays.
"""

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault('KERAS_BACKEND', 'torch')
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'support')]

import keras
import numpy as np
from cyclopts import App
from keras_files import randomised
from old_keras_files import MAP, as_keras2

from xception_hub.errors import KerasFileError
from xception_hub.porting.structure import parse

app = App(help=__doc__, version_flags=[])

Config = dict[str, Any]
Layers = dict[str, Config]  # name -> entry

# What Keras states of a layer -> another value that changes what it computes.
SETTINGS: dict[str, Callable[[Any], Any]] = {
    'filters': lambda value: value + 8,
    'kernel_size': lambda value: [5, 5],
    'strides': lambda value: [3 - value[0]] * 2,
    'padding': lambda value: {'same': 'valid', 'valid': 'same'}[value],
    'data_format': lambda value: 'channels_first',
    'dilation_rate': lambda value: [2, 2],
    'groups': lambda value: 2,
    'activation': lambda value: 'selu' if value == 'relu' else 'relu',
    'use_bias': lambda value: True,
    'depth_multiplier': lambda value: 2,
    'axis': lambda value: 1,
    'epsilon': lambda value: 1e-5,
    'center': lambda value: False,
    'scale': lambda value: False,
    'renorm': lambda value: True,
    'pool_size': lambda value: [2, 2],
    'dtype': lambda value: {'class_name': 'QuantizedDTypePolicy', 'config': {'name': 'int8_from_float32'}},
}
# Those that change nothing in evaluation.
NEUTRAL: dict[str, Callable[[Any], Any]] = {
    'trainable': lambda value: False,
    'momentum': lambda value: 0.5,
    'synchronized': lambda value: True,
    'renorm_clipping': lambda value: {'rmax': 3},
    'renorm_momentum': lambda value: 0.5,
    **{
        f'{array}_initializer': lambda value: {'class_name': 'Unknown', 'config': {}}
        for array in ('kernel', 'bias', 'depthwise', 'pointwise', 'beta', 'gamma', 'moving_mean', 'moving_variance')
    },
    **{
        f'{array}_{kind}': lambda value: {'class_name': 'Unknown', 'config': {}}
        for array in ('kernel', 'bias', 'depthwise', 'pointwise', 'beta', 'gamma', 'activity')
        for kind in ('regularizer', 'constraint')
    },
}
CLASSES = {
    'Conv2D': ('Conv2DTranspose', 'SeparableConv2D'),
    'SeparableConv2D': ('Conv2D', 'DepthwiseConv2D'),
    'BatchNormalization': ('LayerNormalization', 'GroupNormalization'),
    'Activation': ('LeakyReLU', 'Softmax', 'Dropout'),
    'MaxPooling2D': ('AveragePooling2D', 'GlobalMaxPooling2D'),
    'Add': ('Average', 'Concatenate', 'Multiply', 'Maximum'),
}
COMMON = {'selu': 'selu', 'elu': 'elu', 'silu': 'silu', 'gelu': 'gelu', 'relu6': 'relu6', 'tanh': 'tanh'}


class Mutant(NamedTuple):
    """One change, done to the layers of Xception and to the whole model; `converts` are the arguments it stands for."""

    kind: str
    name: str
    change: Callable[[Layers, Config], object]
    converts: dict[str, Any] | None = None  # None: it has to be refused


def model() -> Any:
    """As Keras' guide to transfer learning has it."""
    base = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3))
    inputs = keras.Input((MAP, MAP, 3))
    x = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dropout(0.2)(x)))


def backbone_of(config: Config) -> Config:
    return next(layer for layer in config['config']['layers'] if 'layers' in layer['config'])


def tensors(entry: Config) -> list[Config]:
    """Those that a layer takes; their place is in 'keras_history'."""
    args = entry['inbound_nodes'][0]['args']
    return [tensor['config'] for tensor in (args[0] if isinstance(args[0], list) else args)]


def inputs(entry: Config) -> list[str]:
    return [tensor['keras_history'][0] for tensor in tensors(entry)] if entry['inbound_nodes'] else []


def rewired(name: str, source: str, place: int = 0, which: Sequence[int] = (0, 0)) -> Callable[[Layers, Config], None]:
    return lambda layers, _: tensors(layers[name])[place].update(keras_history=[source, *which])


def replaced(name: str, **settings: Any) -> Callable[[Layers, Config], None]:
    return lambda layers, _: layers[name]['config'].update(settings)


def without(name: str) -> Callable[[Layers, Config], None]:
    """The layer left out: those behind it take what it takes."""

    def change(layers: Layers, config: Config) -> None:
        (source,) = inputs(layers[name])[:1]
        for entry in layers.values():
            for tensor in tensors(entry) if entry['inbound_nodes'] else []:
                if tensor['keras_history'][0] == name:
                    tensor['keras_history'] = [source, 0, 0]
        backbone_of(config)['config']['layers'].remove(layers[name])

    return change


def twice(name: str) -> Callable[[Layers, Config], None]:
    return lambda layers, _: layers[name]['inbound_nodes'].append(copy.deepcopy(layers[name]['inbound_nodes'][0]))


def called(name: str, **kwargs: Any) -> Callable[[Layers, Config], None]:
    return lambda layers, _: layers[name]['inbound_nodes'][0]['kwargs'].update(kwargs)


def all_of(class_name: str, **settings: Any) -> Callable[[Layers, Config], None]:
    def change(layers: Layers, _: Config) -> None:
        for entry in layers.values():
            if entry['class_name'] == class_name:
                entry['config'].update(settings)

    return change


def stated(name: str, **fields: Any) -> Callable[[Layers, Config], None]:
    return lambda layers, _: layers[name].update(fields)


def as_class(name: str, class_name: str) -> Callable[[Layers, Config], None]:
    return lambda layers, _: layers[name].update(class_name=class_name)


def mutants(base: Config) -> Iterator[Mutant]:
    """All of them."""
    layers = layers_of(base)
    inside = {name: entry for name, entry in layers.items() if entry['class_name'] != 'InputLayer'}
    for name, entry in inside.items():
        for setting, value in entry['config'].items():
            if setting in SETTINGS:
                yield Mutant('setting', f'{name}.{setting}', replaced(name, **{setting: SETTINGS[setting](value)}))
            elif setting != 'name':  # a setting that is in no table is an error of this one
                yield Mutant('neutral', f'{name}.{setting}', replaced(name, **{setting: NEUTRAL[setting](value)}), {})
        yield Mutant('setting', f'{name}.unheard_of', replaced(name, unheard_of=2))
        yield Mutant('neutral', f'{name}.unheard_of null', replaced(name, unheard_of=None), {})
        yield from _of_wires(name, entry, layers)
        for class_name in CLASSES[entry['class_name']]:
            yield Mutant('class', f'{name}: {class_name}', as_class(name, class_name))
        own = dict(module='own', registered_name=f'own>{entry["class_name"]}')
        yield Mutant('class', f'{name}: own', stated(name, **own))
        if entry['class_name'] == 'BatchNormalization':
            yield Mutant('call', f'{name}(training=True)', called(name, training=True))
            yield Mutant('neutral', f'{name}(training=False)', called(name, training=False), {})
        yield Mutant('call', f'{name}(speed=2)', called(name, speed=2))
    yield from _of_the_whole(layers)


def _of_wires(name: str, entry: Config, layers: Layers) -> Iterator[Mutant]:
    for place, source in enumerate(inputs(entry)):
        for other in inputs(layers[source])[:1]:
            yield Mutant('wire', f'{name} takes {other}', rewired(name, other, place))
        for field, index in (('call', 1), ('output', 2)):
            which = int(index == 1), int(index == 2)
            yield Mutant('wire', f'{name} takes {field} 1 of {source}', rewired(name, source, place, which))
    yield Mutant('wire', f'without {name}', without(name))
    yield Mutant('call', f'{name} twice', twice(name))
    if entry['class_name'] == 'Add':
        swap = [*reversed(inputs(entry))]
        yield Mutant('neutral', f'{name}, inputs exchanged', _takes(name, swap), {})
        yield Mutant('wire', f'{name} takes one input twice', _takes(name, swap[:1] * 2))


def _takes(name: str, sources: list[str]) -> Callable[[Layers, Config], None]:
    def change(layers: Layers, _: Config) -> None:
        for tensor, source in zip(tensors(layers[name]), sources, strict=True):
            tensor['keras_history'] = [source, 0, 0]

    return change


def _of_the_whole(layers: Layers) -> Iterator[Mutant]:
    adds = [name for name, entry in layers.items() if entry['class_name'] == 'Add']

    def residuals_shifted(layers: Layers, config: Config) -> None:
        for name, earlier in ((adds[5], adds[3]), (adds[6], adds[4])):
            rewired(name, earlier, 1)(layers, config)

    def ends_at(key: str, name: str) -> Callable[[Layers, Config], object]:
        return lambda _, config: backbone_of(config)['config'].update({key: [name, 0, 0]})

    def renamed(_: Layers, config: Config) -> None:
        text = json.dumps(config)
        for name in layers:
            text = text.replace(f'"{name}"', f'"own_{name}"')
        config.update(json.loads(text))

    yield Mutant('wire', 'two residuals of a module before', residuals_shifted)
    for name in adds:
        yield Mutant('end', f'the backbone ends at {name}', ends_at('output_layers', name))
        yield Mutant('end', f'the backbone begins at {name}', ends_at('input_layers', name))
    yield Mutant('common', 'epsilon 1e-5', all_of('BatchNormalization', epsilon=1e-5), dict(bn_eps=1e-5))
    for name, ours in COMMON.items():
        yield Mutant('common', f'activation {name}', all_of('Activation', activation=name), dict(act_layer=ours))
    for name in ('linear', 'leaky_relu', 'softmax', 'hard_sigmoid', 'own>relu'):
        yield Mutant('common', f'activation {name}', all_of('Activation', activation=name))
    for epsilon in (0, 1, -1e-3, True, None, '1e-3'):
        yield Mutant('common', f'epsilon {epsilon!r}', all_of('BatchNormalization', epsilon=epsilon))
    yield Mutant('neutral', 'axis 3', all_of('BatchNormalization', axis=3), {})
    yield Mutant('neutral', 'all names of layers', renamed, {})
    yield Mutant(
        'neutral', 'layers in another order', lambda _, config: backbone_of(config)['config']['layers'].reverse(), {}
    )

    def outer(number: int, *args: Any, **kwargs: Any) -> Callable[[Layers, Config], None]:
        def change(_: Layers, config: Config) -> None:
            node = config['config']['layers'][number]['inbound_nodes'][0]
            node.update(args=[*node['args'], *args], kwargs={**node['kwargs'], **kwargs})

        return change

    for number, name in ((1, 'the backbone'), (3, 'the dropout of the head')):
        yield Mutant('call', f'{name} (training=True)', outer(number, training=True))
        yield Mutant('call', f'{name} (x, True)', outer(number, True))


def layers_of(config: Config) -> Layers:
    return {entry['name']: entry for entry in backbone_of(config)['config']['layers']}


def mutated(base: Config, mutant: Mutant) -> Config:
    config = json.loads(json.dumps(base))  # a copy, sooner than by deepcopy
    mutant.change(layers_of(config), config)
    return config


FORMATS: dict[str, Callable[[Config], Config]] = {'Keras 3': lambda config: config, 'tf.keras 2.12': as_keras2}


def verdict(config: Config) -> tuple[dict[str, Any] | None, str]:
    """Arguments of the network, or None and why the config is refused."""
    try:
        return parse(config, 'the file').arguments, ''
    except KerasFileError as e:
        return None, str(e)


def difference(original: Any, config: Config) -> float | str:
    """How far Keras' own prediction of a mutant is from that of Xception with the same arrays; or why not."""
    try:
        other = keras.models.model_from_json(json.dumps(config))
        other.set_weights(original.get_weights())
        images = np.random.default_rng(0).uniform(-1, 1, (4, MAP, MAP, 3)).astype(np.float32)
        expected, found = (np.asarray(model.predict(images, verbose=0)) for model in (original, other))
    except Exception as e:
        return type(e).__name__
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


RUN = (
    'block1_conv1.strides', 'block1_conv2.padding', 'block14_sepconv1.dilation_rate', 'block2_pool.pool_size',
    'block7_sepconv1.activation', 'add_4 takes block6_sepconv2_bn', 'two residuals of a module before',
    'activation selu', 'epsilon 1e-5', 'block5_sepconv1_bn.momentum', 'without block9_sepconv2_act', 'axis 3',
    'add_3, inputs exchanged',
)  # fmt: skip


@app.default
def main(run: bool = False, every: int = 1) -> None:
    """Prints the table.

    Args:
        run: Have Keras compute some of the mutants.
        every: Of the mutants of each kind, take each n-th.
    """
    original = model()
    base = json.loads(original.to_json())
    print('| config of | changed | mutants | refused | convert | wrong |\n|---|---|---|---|---|---|')
    failures = []
    for format_, write in FORMATS.items():
        counts: dict[str, list[int]] = {}
        numbers: dict[str, int] = {}
        unchanged = write(base)
        for mutant in mutants(base):
            numbers[mutant.kind] = numbers.get(mutant.kind, -1) + 1
            if numbers[mutant.kind] % every:
                continue
            config = write(mutated(base, mutant))
            if config == unchanged:  # this format does not say it
                continue
            found, why = verdict(config)
            count = counts.setdefault(mutant.kind, [0, 0, 0, 0])
            wrong = found != mutant.converts or 'is not that of a Keras model' in why
            for i, is_so in enumerate((True, found is None, found is not None, wrong)):
                count[i] += is_so
            if wrong:
                failures.append(f'{format_}: {mutant.kind} {mutant.name}: {found}, {why[:300]}')
        for kind, count in counts.items():
            print(f'| {format_} | {kind} | {" | ".join(map(str, count))} |', flush=True)
    print('\n'.join(failures))
    if run:
        print("| mutant | difference of Keras' predictions | verdict |\n|---|---|---|")
        randomised(original)
        for mutant in mutants(base):
            if mutant.name in RUN:
                config = mutated(base, mutant)
                found, _ = verdict(config)
                far = difference(original, config)
                shown = far if isinstance(far, str) else f'{far:.0e}'
                print(
                    f'| {mutant.name} | {shown} | {"refused" if found is None else found or "converts"} |', flush=True
                )
    if failures:
        sys.exit(1)


if __name__ == '__main__':
    app()
