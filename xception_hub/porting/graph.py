"""The graph of a Keras model, read from its config as data: all layers up to an output, models within models opened.

Keras 3    {"args": [tensor, 2.0], "kwargs": {"training": false}}, a tensor with its "keras_history"
Keras 2    [["block1_conv1", 0, 0, {"training": false}]], or a single one of these for an operation
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import listed
from .layer_settings import WAY_OUT, Refused
from .names import IMAGE_AUGMENTATIONS, group_name

MODELS = ('Functional', 'Model', 'Sequential')
OLD_CLASSES = {'BatchNormalizationV1': 'BatchNormalization', 'BatchNormalizationV2': 'BatchNormalization'}
KERAS_MODULES = re.compile(r'(tensorflow\.(python\.)?|tf_)?keras(\.[\w.]+)?')
CONSTANT = '_CONSTANT_VALUE'  # what tf_keras writes for the name of a layer where a number is
# Operations that `x / 127.5 - 1` leaves in a config: Keras 3's classes, the functions of tf_keras' TFOpLambda, and the
# operations of TensorFlow before 2.4.
OPERATIONS = {
    **dict.fromkeys(('TrueDivide', 'Divide', 'math.truediv', 'math.divide', 'RealDiv'), 'TrueDivide'),
    **dict.fromkeys(('Subtract', 'math.subtract', 'Sub'), 'Subtract'),
    **dict.fromkeys(('Add', '__operators__.add', 'math.add', 'AddV2'), 'Add'),
    **dict.fromkeys(('Multiply', 'math.multiply', 'Mul'), 'Multiply'),
}
MAX_NESTING = 16
MAX_LAYERS = 2000  # Xception has 132
MAX_NAME = 200  # characters


class Tensor(NamedTuple):
    """An output of a layer: of which of its calls, and which one of that."""

    layer: str
    node: int = 0
    output: int = 0


class Call(NamedTuple):
    """One call of a layer.

    Attributes:
        tensors: What it takes.
        arguments: Its other arguments: place among the operands, name or None, value.
        of_keras3: Whether Keras 3 wrote it, which also states arguments that are its defaults.
    """

    tensors: tuple[Tensor, ...]
    arguments: tuple[tuple[int, str | None, Any], ...] = ()
    of_keras3: bool = False


@dataclass(eq=False, repr=False)
class FileLayer:
    """A layer of a Keras file, and where its arrays are.

    Attributes:
        name: Name of the layer; None if the file does not say it.
        class_name: Keras' name of the layer's class, or the file's abbreviation if the class is not known here.
        path: Path of the layer's group in the layout since Keras 3.
        top: Layer of the outermost model that the layer is or is in. Keras 2 names the group of arrays after it.
        config: The layer's arguments; empty for weights alone.
        calls: How the layer is called in its model: once, if it is not shared.
        outer_class: Class of the layer `top`.
        inputs: The layers whose outputs it takes, in the opened graph.
    """

    name: str | None
    class_name: str
    path: str = ''
    top: str = ''
    config: dict[str, Any] = field(default_factory=dict)
    calls: tuple[Call, ...] = ()
    outer_class: str = ''
    inputs: tuple['FileLayer', ...] = ()

    def __str__(self) -> str:
        return f'the {self.class_name} layer {self.name!r}'

    @property
    def constants(self) -> list[tuple[int, Any]]:
        """Numbers that the layer is called with, each with its place among the operands."""
        arguments = (argument for call in self.calls for argument in call.arguments)
        found = [(place, value) for place, _, value in arguments if type(value) in (int, float)]
        if self.class_name == 'TensorFlowOpLayer':  # its config has them, each a number or a list for the channels
            found += [(('0', '1').index(place), value) for place, value in self.config['constants'].items()]
        return found


@dataclass(eq=False, repr=False)
class Model:
    """A Keras model: its layers by name, some of which are models.

    Attributes:
        class_name: 'Functional', 'Model' or 'Sequential'.
        trainable: Whether its arrays are trained.
        layers: Its layers, in Keras' order.
        nested: Those that are models.
        inputs: Names of its input layers.
        outputs: What it gives.
        outer: The model that it is in, and its layer there; None for the outermost one.
    """

    class_name: str
    trainable: bool
    layers: dict[str, FileLayer]
    nested: dict[str, 'Model']
    inputs: list[str]
    outputs: list[Tensor]
    outer: tuple['Model', FileLayer] | None = None

    def all(self) -> Iterator['Model']:
        yield self
        for model in self.nested.values():
            yield from model.all()


def all_layers(model: Model) -> Iterator[FileLayer]:
    """Yields all layers in the order of the config; those of a model within follow it."""
    for name, layer in model.layers.items():
        yield layer
        if name in model.nested:
            yield from all_layers(model.nested[name])


def read_model(config: dict[str, Any]) -> Model:
    """Reads a model and the models in it, with the places of their layers in weight files."""
    return _read_model(config, None, 'layers')


def _read_model(entry: dict[str, Any], outer: tuple[Model, FileLayer] | None, path: str) -> Model:
    if path.count('/') > 2 * MAX_NESTING:
        raise ValueError('models are nested without end')
    config = entry['config']
    config = {'layers': config} if isinstance(config, list) else config  # the Sequential of early Keras 2
    if len(config['layers']) > MAX_LAYERS:
        raise ValueError(f'it has {len(config["layers"])} layers')
    inputs = [tensor.layer for tensor in tensors_in(config.get('input_layers'))]
    outputs = [*tensors_in(config.get('output_layers'))]
    model = Model(entry['class_name'], config.get('trainable') is not False, {}, {}, inputs, outputs, outer)
    counts: dict[str, int] = {}
    for inner in config['layers']:
        # Keras keeps arrays under the snake-case name of the class, numbered within the model
        class_name = OLD_CLASSES.get(_class_of(inner), _class_of(inner))
        group = group_name(class_name)
        counts[group] = counts.get(group, -1) + 1
        place = f'{path}/{group}' + (f'_{counts[group]}' if counts[group] else '')
        settings = {} if class_name in MODELS and isinstance(inner['config'], list) else inner['config']
        name = inner.get('name') or settings['name']
        for text in (name, inner['class_name']):
            if not isinstance(text, str) or not text.isprintable() or len(text) > MAX_NAME:
                raise ValueError(f'a layer or its class is called {text!r:.300}')
        if name in model.layers:
            raise ValueError('two layers have the same name')
        top, top_class = (outer[1].top, outer[1].outer_class) if outer else (name, inner['class_name'])
        layer = FileLayer(name, class_name, place, top, settings, read_calls(inner), top_class)
        model.layers[name] = layer
        if class_name in MODELS:
            model.nested[name] = _read_model(inner, (model, layer), f'{place}/layers')
    if model.class_name == 'Sequential':
        _line_up(model)
    return model


def _line_up(model: Model) -> None:
    """Wires the layers of a Sequential, whose config does not. Early ones have no input layer."""
    first = next(iter(model.layers.values()))
    line = model.layers
    if first.class_name != 'InputLayer':
        line = {'': FileLayer('', 'InputLayer', config=first.config, top=first.top), **line}
    for name, layer in zip(line, [*line.values()][1:]):
        layer.calls = (Call((Tensor(name),)),)
    model.layers, model.inputs, model.outputs = line, [next(iter(line))], [Tensor([*line][-1])]


def _class_of(entry: dict[str, Any]) -> str:
    """A layer's class; with its package if that is not Keras, whose classes may have the same names."""
    module, registered = entry.get('module'), entry.get('registered_name')
    own = 'module' in entry and not KERAS_MODULES.fullmatch(str(module))
    return str(registered or f'{module}.{entry["class_name"]}') if own else entry['class_name']


def trace(outer: Model, output_layer: str | None) -> tuple[FileLayer, list[FileLayer]]:
    """Follows the wires from the output back to the images.

    Args:
        outer: The outermost model.
        output_layer: Layer that is the output, of the model or of one within it; None for its own output.

    Returns:
        The output, and all layers on which it depends, each with its `inputs`.

    Raises:
        Refused: There is no such output, or there are several; a layer is called more than once.
    """
    outputs = list(dict.fromkeys(tensor.layer for tensor in outer.outputs))
    home, end = outer, output_layer or outputs[0]
    if output_layer and output_layer not in outer.layers:
        homes = [model for model in outer.all() if output_layer in model.layers]
        if len(homes) != 1:
            inside = listed([model.outer[1].name for model in homes if model.outer]) if homes else 'none'
            raise Refused(
                f'it has no layer {output_layer!r}; its outputs are {listed(outputs)}. Models in it that have one: '
                f'{inside}.'
            )
        home = homes[0]
    elif not output_layer and len(outputs) != 1:
        raise Refused(f'it has {len(outputs)} outputs. Choose one of them with --output-layer: {listed(outputs)}.')
    last, model = _source_of(home, Tensor(end))
    stack, found = [(last, model)], {last: None}
    while stack:
        layer, model = stack.pop()
        if layer.class_name != 'InputLayer':
            sources = [_source_of(model, tensor, layer) for call in layer.calls for tensor in call.tensors]
            layer.inputs = tuple(source for source, _ in sources)
            stack += [pair for pair in dict(sources).items() if pair[0] not in found]
            found.update(dict.fromkeys(layer.inputs))
    unused = [layer for layer in all_layers(outer) if layer not in found and layer.class_name not in MODELS]
    unused = [layer for layer in unused if layer.class_name != 'InputLayer']
    if unused and not output_layer:
        raise Refused(f'{unused[0]} is not on the way from image to output. Pass --output-layer {end} to leave it out.')
    return last, list(found)


def _source_of(model: Model, tensor: Tensor, taker: FileLayer | None = None) -> tuple[FileLayer, Model]:
    """The layer that computes a tensor of a model, and the model that it is in."""
    layer = model.layers[tensor.layer]
    nested = model.nested.get(tensor.layer)
    # in Keras 2, a model has a call of its own before it is called
    if tensor.output or not 0 <= tensor.node <= (nested is not None):
        raise Refused(
            f'{taker} takes output {tensor.output} of call {tensor.node} of {tensor.layer!r}, which has one output and '
            f'is called once.'
        )
    if len(layer.calls) > 1:
        raise Refused(f'{layer} is called {len(layer.calls)} times in one model. {WAY_OUT}')
    if nested:
        if len(nested.outputs) != 1:
            outputs = listed([output.layer for output in nested.outputs])
            raise Refused(f'{layer} has {len(nested.outputs)} outputs. Choose one with --output-layer: {outputs}.')
        return _source_of(nested, nested.outputs[0], layer)
    if tensor.layer in model.inputs and layer.class_name != 'InputLayer':
        raise Refused(f'a model in it begins at {tensor.layer!r}, which is no InputLayer. {WAY_OUT}')
    if layer.class_name == 'InputLayer' and model.outer:
        outer, itself = model.outer
        return _source_of(outer, itself.calls[0].tensors[model.inputs.index(tensor.layer)], itself)
    return layer, model


def check_call(layer: FileLayer) -> None:
    """Refuses a call that changes what a layer computes."""
    for call in layer.calls:
        is_step = operation_of(layer) in OPERATIONS and len(call.tensors) == 1
        numbers = {number for number, _ in layer.constants} if is_step else set()
        by_default = call.of_keras3 and layer.class_name in IMAGE_AUGMENTATIONS
        for number, name, value in call.arguments:
            neutral = value is None or value is False or number in numbers or name == 'name'
            if not neutral and not (by_default and name == 'training'):
                raise Refused(
                    f'{layer} is called with {name or "a second argument"}={value!r:.200}, which changes what it '
                    f'computes. Build the model in Keras without it, new.set_weights(old.get_weights()), and save the '
                    f'new one.'
                )


def operation_of(layer: FileLayer) -> str:
    """What an operation is called that is a layer."""
    if layer.class_name == 'TensorFlowOpLayer':
        node = layer.config['node_def']
        return str((json.loads(node) if isinstance(node, str) else node)['op'])
    return str(layer.config.get('function')) if layer.class_name == 'TFOpLambda' else layer.class_name


def read_calls(entry: dict[str, Any]) -> tuple[Call, ...]:
    """All calls of a layer, from its entry in a config."""
    nodes = entry.get('inbound_nodes', [])
    return tuple(_of_keras3(node) if isinstance(node, dict) else _of_keras2(node) for node in nodes)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a part of a config, in order."""
    if isinstance(value, dict):
        if 'keras_history' in value:
            yield Tensor(*value['keras_history'])
        else:
            for part in value.values():
                yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        if len(value) >= 3 and isinstance(value[0], str) and all(type(i) is int for i in value[1:3]):
            yield Tensor(*value[:3])
        else:
            for part in value:
                yield from tensors_in(part)


def _of_keras3(node: dict[str, Any]) -> Call:
    operands = [*((None, value) for value in node.get('args', [])), *node.get('kwargs', {}).items()]
    return _call([(place, name, value) for place, (name, value) in enumerate(operands)])._replace(of_keras3=True)


def _of_keras2(node: list[Any]) -> Call:
    operands: list[tuple[int, str | None, Any]] = []
    for place, part in enumerate([node] if isinstance(node[0], str) else node):
        operands.append((place, None, part[2] if part[0] == CONSTANT else part[:3]))
        named = part[3].items() if len(part) > 3 else ()
        operands += [(place + number, name, value) for number, (name, value) in enumerate(named, start=1)]
    return _call(operands)


def _call(operands: list[tuple[int, str | None, Any]]) -> Call:
    found = [(operand, tuple(tensors_in(operand[2]))) for operand in operands]
    tensors = tuple(tensor for _, several in found for tensor in several)
    return Call(tensors, tuple(operand for operand, several in found if not several))
