"""Keras' own Xception as a config states it, generated from `topology.py`, and the comparison of a file with it.

Each layer has a role, which is its name in Keras; those that Keras leaves unnamed are called 'block2_residual_conv',
'block2_residual_bn' and 'block5_add'. Whatever a config says of these layers is compared, or known to change nothing in
evaluation: a setting that is in neither table is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from .. import Xception
from ..topology import MODULES
from .graph import FileLayer
from .layer_settings import ACTIVATIONS, SETTINGS, WAY_OUT, Refused, is_number, read_settings
from .names import KERAS_CLASSES, LAYERS

INPUT = 'input'

# Classes that compute the same as another one, with the settings of `SETTINGS`.
SAME = {'Activation': ('Activation', 'ReLU')}

# Settings that all layers of a class may have in common: the network's argument, and its value for that of Keras.
ARGUMENTS: dict[tuple[str, str], tuple[str, Callable[[Any], Any]]] = {
    ('BatchNormalization', 'epsilon'): ('bn_eps', lambda eps: eps if is_number(eps) and 0 < eps < 1 else None),
    # over the channels of a map, Keras' softmax is none of timm's
    ('Activation', 'activation'): ('act_layer', lambda name: None if name == 'softmax' else ACTIVATIONS.get(name)),
}


class Node(NamedTuple):
    """A layer of Keras' Xception: its class, the settings that are not Keras' defaults, and the roles it takes."""

    class_name: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]


def _figure5() -> Iterator[tuple[str, Node]]:
    """All layers, each after those that it takes."""
    same = dict(padding='same', use_bias=False)
    last = INPUT

    def layer(role: str, class_name: str, *beside: str, **settings: Any) -> tuple[str, Node]:
        nonlocal last
        node = Node(class_name, settings, (last, *beside))
        last = role
        return role, node

    for module in MODULES:
        block = f'block{module.number}'
        start, kind = last, 'conv' if module.number == 1 else 'sepconv'
        acts_after = module.number in (1, 14)
        for i in range(1, module.convs + 1):
            conv = f'{block}_{kind}{i}'
            if not acts_after and (module.number, i) != (2, 1):
                yield layer(f'{conv}_act', 'Activation', activation='relu')
            if kind == 'conv':
                strides = (2, 2) if i == 1 else (1, 1)
                yield layer(conv, 'Conv2D', kernel_size=(3, 3), strides=strides, use_bias=False)
            else:
                yield layer(conv, 'SeparableConv2D', kernel_size=(3, 3), **same)
            yield layer(f'{conv}_bn', 'BatchNormalization')
            if acts_after:
                yield layer(f'{conv}_act', 'Activation', activation='relu')
        if module.strided:
            yield layer(f'{block}_pool', 'MaxPooling2D', pool_size=(3, 3), strides=(2, 2), padding='same')
            pool, last = last, start
            yield layer(f'{block}_residual_conv', 'Conv2D', kernel_size=(1, 1), strides=(2, 2), **same)
            yield layer(f'{block}_residual_bn', 'BatchNormalization')
            start, last = last, pool
        if not acts_after:
            yield layer(f'{block}_add', 'Add', start)


FIGURE5 = dict(_figure5())
FIRST, LAST = next(iter(FIGURE5)), [*FIGURE5][-1]
TAPPED = ['block1_conv2_act', *(role for role in FIGURE5 if role.endswith('_add')), LAST]  # after each module


class Match(NamedTuple):
    """How far a graph is that of figure 5: role -> layer, and where it first is another one, or ''."""

    roles: dict[str, FileLayer]
    deviation: str


def match(layers: Sequence[FileLayer]) -> Match | None:
    """Follows figure 5 through a graph, by classes and wires alone, from the first convolution on that leads farthest.

    Returns:
        None for a graph without a convolution.
    """
    consumers: dict[FileLayer, list[FileLayer]] = {}
    for layer in layers:
        for source in dict.fromkeys(layer.inputs):
            consumers.setdefault(source, []).append(layer)
    convs = [layer for layer in layers if layer.class_name == KERAS_CLASSES['conv']]
    starts = [layer for layer in convs if FIRST in (layer.name or '')] or convs
    names = {layer.name: layer for layer in layers}
    return max((_follow(start, consumers, names) for start in starts), key=lambda found: len(found.roles), default=None)


def _follow(start: FileLayer, consumers: dict[FileLayer, list[FileLayer]], names: dict[str | None, FileLayer]) -> Match:
    roles = {FIRST: start}
    for role, node in [*FIGURE5.items()][1:]:
        inputs = [roles[name] for name in node.inputs]
        following = consumers.get(inputs[0], [])
        fitting = [
            layer
            for layer in following
            if layer.class_name in SAME.get(node.class_name, (node.class_name,))
            and sorted(map(id, layer.inputs)) == sorted(map(id, inputs))
        ]
        if len(fitting) != 1:
            shown = [names[role]] if role in names else following[:4]
            found = ' and '.join(f'{layer}, which takes {_named(layer.inputs)[:200]}' for layer in shown)
            return Match(
                roles,
                f"in Keras' Xception, one {node.class_name} layer ({role}) takes {_named(inputs)}. The file has "
                f'{found or "no layer there"}. {WAY_OUT}',
            )
        roles[role] = fitting[0]
    return Match(roles, '')


def _named(layers: Sequence[FileLayer]) -> str:
    return ' and '.join(repr(layer.name) for layer in layers)


def compare(roles: dict[str, FileLayer]) -> dict[str, Any]:
    """Compares every setting of every layer with that of Keras' Xception.

    Args:
        roles: Role -> layer.

    Returns:
        Arguments of `xception_hub.Xception` for what all layers have in common.

    Raises:
        Refused: A layer has another setting, which no argument stands for, or one that is not known.
    """
    common: dict[tuple[str, str], dict[Any, tuple[str, Any]]] = {key: {} for key in ARGUMENTS}
    for role, layer in roles.items():
        node = FIGURE5[role]
        place = f'{layer} ({role})'
        expected = {**SETTINGS[node.class_name], **node.settings}
        if role in LAYERS and 'filters' in expected:
            expected['filters'] = widths()[role]
        found = _settings_of(layer.class_name, layer.config, place)
        if layer.class_name != node.class_name:  # with Keras' defaults it is the same as this one
            _refuse_first(found, SETTINGS[layer.class_name], place)
            found = dict(expected, activation=layer.class_name.lower())
        for name in expected:
            if (node.class_name, name) in ARGUMENTS:
                common[node.class_name, name].setdefault(found[name], (place, expected[name]))
                found[name] = expected[name]
        _refuse_first(found, expected, place)
    arguments = {}
    for (class_name, name), values in common.items():
        argument, convert = ARGUMENTS[class_name, name]
        for value, (place, default) in values.items():
            if value != default:
                arguments[argument] = convert(value)
                if len(values) > 1 or arguments[argument] is None:
                    _refuse_first({name: value}, {name: default}, place)
    return arguments


def compare_backbone(config: dict[str, Any]) -> None:
    """Compares the config of KerasHub's XceptionBackbone, which states the widths and poolings of all modules.

    Raises:
        Refused: It is another network.
    """
    place = "its 'XceptionBackbone'"
    convs = [
        [f'block{module.number}_{"conv" if module.number == 1 else "sepconv"}{i + 1}' for i in range(module.convs)]
        for module in MODULES
    ]
    expected = dict(
        SETTINGS['XceptionBackbone'],
        stackwise_conv_filters=tuple(tuple(widths()[role] for role in roles) for roles in convs),
        stackwise_pooling=tuple(module.strided for module in MODULES),
    )
    _refuse_first(_settings_of('XceptionBackbone', config, place), expected, place)


def _settings_of(class_name: str, config: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        return read_settings(class_name, config)
    except Refused as e:
        raise Refused(f'{place} {e}. {WAY_OUT}') from e


def _refuse_first(found: dict[str, Any], expected: dict[str, Any], place: str) -> None:
    for name, value in expected.items():
        if found[name] != value:
            raise Refused(
                f"{place} has {name} {_shown(found[name])}; in Keras' Xception it is {_shown(value)}. {WAY_OUT}"
            )


def _shown(value: Any) -> str:
    return f'{list(value) if isinstance(value, tuple) else value!r}'[:200]


@cache
def widths() -> dict[str, int]:
    """Channels out of each convolution, as the network has them."""
    shapes = {name: tensor.shape for name, tensor in Xception(device='meta').state_dict().items()}
    names = {'conv': '{}.weight', 'sepconv': '{}.conv_pw.weight', 'bn': '{}.weight'}
    return {role: shapes[names[layer.kind].format(layer.torch)][0] for role, layer in LAYERS.items()}
