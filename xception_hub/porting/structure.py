"""Where Xception is in a Keras model, and what stands before and after it, read as data.

config   -> models within models -> one line of layers -> before | Xception | after
weights alone -> the layers that have arrays, and a head that leaves no choice
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import KerasFileError, listed
from ..layers import MIN_IMG_SIZE
from ..topology import MODULES
from .figure5 import FIRST, LAST, WAY_OUT, compare, match
from .keras_head import (
    HINTS,
    MAX_CHANNELS,
    OPERATIONS,
    POOLS,
    FileHead,
    Step,
    behind,
    operation_of,
    read_bare_head,
    read_head,
    read_steps,
)
from .layer_settings import Refused
from .layouts import FileLayer, numbered
from .names import IMAGE_AUGMENTATIONS, KERAS_CLASSES, LAYERS, LISTED, group_name
from .nodes import Call, Tensor, read_calls, tensors_in
from .preprocessing import Rescaling

MODELS = ('Functional', 'Model', 'Sequential')
KERAS_MODULES = re.compile(r'(tensorflow\.(python\.)?|tf_)?keras(\.[\w.]+)?')
MAX_IMG_SIZE = 4096  # pixels; both networks are compared at this size
MAX_NESTING = 16
MAX_LAYERS = 2000  # Xception has 132
MAX_NAME = 200  # characters
STEM = 6  # layers of the first module, which other networks have too
OLD_CLASSES = {'BatchNormalizationV1': 'BatchNormalization', 'BatchNormalizationV2': 'BatchNormalization'}
KERAS1_CLASSES = ('Convolution2D', 'SeparableConvolution2D', 'Merge')
RESIDUAL_BLOCKS = [module.number for module in MODULES if module.strided]

# Xception's layers without arrays. A file of weights that has more of a class has the rest in its head.
COUNTS = {'Activation': 35, 'MaxPooling2D': 4, 'Add': 12}


@dataclass
class Structure:
    """An Xception with what stands around it.

    Attributes:
        layers: Key of `names.LAYERS` -> the file's layer.
        head: The head after the feature maps.
        steps: What the model itself does to its images.
        rescaling: Scale and offset that come of it, each for all channels or for each; known when arrays were read.
        image_size: Height and width in pixels; None if the model takes any.
        channels: Number of image channels; None if the file does not say it.
        residuals_by: How the residual layers were identified: by 'name', 'graph' or 'order'.
        ignored: Names of training-only layers.
        others: Layers that lead to other outputs than the chosen one.
        roles: Key of `figure5.FIGURE5` -> the file's layer; empty for weights alone, which say no settings and wires.
        arguments: Arguments of `xception_hub.Xception` for settings that all layers of a class have in common.
    """

    layers: dict[str, FileLayer]
    head: FileHead = field(default_factory=FileHead)
    steps: list[Step] = field(default_factory=list)
    rescaling: Rescaling = (1.0, 0.0)
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    residuals_by: str = 'name'
    ignored: list[str] = field(default_factory=list)
    others: list[FileLayer] = field(default_factory=list)
    roles: dict[str, FileLayer] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def rescales(self) -> bool:
        """Whether the model has a layer that rescales."""
        return bool(self.steps)


@dataclass
class Model:
    """A Keras model: its layers in Keras' order, some of which are models."""

    class_name: str
    layers: list[FileLayer]
    nested: dict[str, 'Model']
    inputs: list[Tensor]
    outputs: list[Tensor]

    def all(self) -> Iterator['Model']:
        yield self
        for model in self.nested.values():
            yield from model.all()


def parse(config: Any, source: object, output_layer: str | None = None) -> Structure:
    """Reads a model's config as data. Nothing in it is deserialised.

    Args:
        config: What `model.to_json()` gives.
        source: Name of the source in errors.
        output_layer: Layer that is the output, of the model or of one within it; None for its own output.

    Raises:
        KerasFileError: The model is no Xception, or has a layer that cannot be converted.
    """
    try:
        outer = _read_model(config, 'layers', itertools.count())
        others = _drop_others(outer, output_layer) if output_layer else []
        _check_era(outer)
        home, roles = _find_xception(outer)
        layers = {role: roles[role] for role in LAYERS}
        structure = Structure(layers, residuals_by='graph', others=others, roles=roles)
        structure.image_size, structure.channels = _input_of(outer)
        structure.arguments = compare(roles)
        before, after = _around_xception(outer, home, roles)
        structure.steps, ignored = read_steps(before, layers[FIRST].top)
        structure.head = read_head(after, structure.image_size)
        _check_calls(outer)
        structure.ignored = ignored + structure.head.ignored
    except Joined as e:
        choices = ', '.join(n for n in dict.fromkeys([*e.choices, roles[LAST].name or '']) if _converts(config, n))
        raise KerasFileError(
            f'{source}: {e}, which cannot be converted. Choose what can with --output-layer: {choices}.'
        ) from e
    except Refused as e:
        raise KerasFileError(f'{source}: {e}') from e
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError) as e:
        raise KerasFileError(f'{source}: its config is not that of a Keras model ({type(e).__name__}: {e}).') from e
    return structure


class Joined(Refused):
    """A layer takes several outputs; `choices` are those that come from Xception."""

    def __init__(self, text: str, choices: Sequence[str]) -> None:
        super().__init__(text)
        self.choices = choices


def _converts(config: Any, output_layer: str) -> bool:
    try:
        parse(config, '', output_layer)
    except KerasFileError:
        return False
    return True


def bare(layers: list[FileLayer]) -> Structure:
    """Reads the structure from weights that come without a config.

    Args:
        layers: The layers that the file names, in Keras' order.

    Raises:
        Refused: The layers are no Xception, or the head could be one of several.
    """
    if len(layers) > MAX_LAYERS:
        raise Refused(f'it holds {len(layers)} layers, more than any Xception.')
    homes: dict[str, list[FileLayer]] = {}
    for layer in layers:
        homes.setdefault(layer.path.rpartition('/')[0] or layer.top, []).append(layer)
    # Keras 2 gives a group to each layer of a model that is not nested
    candidates = [layers, *homes.values()] if len(homes) > 1 else [layers]
    for home in reversed(candidates):
        found = _identify(home)
        if found:
            ours = {id(layer) for layer in found[0].values()}
            rest = [layer for layer in layers if id(layer) not in ours]
            head = read_bare_head(list(_without_backbone(rest)))
            return Structure(found[0], head, residuals_by=found[1], ignored=head.ignored)
    if any(map(_by_order, candidates)):
        raise Refused(
            'it holds an Xception whose layers have names of their own, in a group whose order depends on which '
            'of them were frozen. Pass --config FILE with what model.to_json() gives in Keras.'
        )
    raise Refused(_no_xception(layers))


def _without_backbone(layers: Iterable[FileLayer]) -> Iterator[FileLayer]:
    """Leaves out as many layers of each class as Xception itself has."""
    counts = dict(COUNTS)
    for layer in layers:
        own = re.match(r'block\d+_(\w*act|pool)$|add(_\d+)?$', layer.name or '')
        class_name = layer.class_name
        if own or counts.get(class_name, 0) > 0:
            counts[class_name] = counts.get(class_name, 1) - 1
        elif class_name not in MODELS and class_name != 'InputLayer':
            yield layer


def _read_model(
    layer: dict[str, Any], path: str, numbers: Iterator[int], top: str = '', outer_class: str = '', depth: int = 0
) -> Model:
    """Reads a model and the models in it, with the places of their layers in weight files."""
    config = layer['config']
    if depth > MAX_NESTING:
        raise ValueError('models are nested without end')
    entries = config if isinstance(config, list) else config['layers']  # a list in the Sequential of early Keras 2
    if len(entries) > MAX_LAYERS:
        raise ValueError(f'it has {len(entries)} layers')
    own = {} if isinstance(config, list) else config
    inputs, outputs = ([*tensors_in(own.get(key))] for key in ('input_layers', 'output_layers'))
    model = Model(layer['class_name'], [], {}, inputs, outputs)
    counts: dict[str, int] = {}
    for entry in entries:
        # Keras keeps arrays under the snake-case name of the class, numbered within the model
        class_name = OLD_CLASSES.get(_class_of(entry), _class_of(entry))
        group = group_name(class_name)
        counts[group] = counts.get(group, -1) + 1
        place = f'{path}/{group}' + (f'_{counts[group]}' if counts[group] else '')
        is_model = class_name in MODELS
        settings = {} if is_model and isinstance(entry['config'], list) else entry['config']
        name = entry.get('name') or settings['name']
        for text in (name, entry['class_name']):
            if not isinstance(text, str) or not text.isprintable() or len(text) > MAX_NAME:
                raise ValueError(f'a layer or its class is called {text!r:.300}')
        model.layers.append(
            FileLayer(
                name,
                class_name,
                place,
                top or name,
                settings,
                read_calls(entry),
                outer_class or entry['class_name'],
                next(numbers),
            )
        )
        if is_model:
            model.nested[name] = _read_model(
                entry, f'{place}/layers', numbers, top or name, outer_class or entry['class_name'], depth + 1
            )
    names = [layer.name for layer in model.layers]
    if len(set(names)) < len(names):
        raise ValueError('two layers have the same name')
    return model


def _class_of(entry: dict[str, Any]) -> str:
    """A layer's class; with its package if that is not Keras, whose classes may have the same names."""
    module, registered = entry.get('module'), entry.get('registered_name')
    own = 'module' in entry and not KERAS_MODULES.fullmatch(str(module))
    return str(registered or f'{module}.{entry["class_name"]}') if own else entry['class_name']


def _drop_others(model: Model, output_layer: str) -> list[FileLayer]:
    """Removes the layers on which the chosen output does not depend, and returns them. It may be in a model within."""
    end, others = output_layer, []
    if output_layer not in {layer.name for layer in model.layers}:
        holders = [name for name, inner in model.nested.items() if output_layer in _all_names(inner)]
        if len(holders) != 1:
            where = f'several: {listed([*holders])}' if holders else 'none'
            raise Refused(
                f'it has no layer {output_layer!r}; its outputs are {listed([*_outputs(model)])}. Models in '
                f'it that have one: {where}.'
            )
        end = holders[0]
        others = _drop_others(model.nested[end], output_layer)
    needed = _ancestors(model, end)
    others += [layer for layer in model.layers if layer.name not in needed]
    model.layers = [layer for layer in model.layers if layer.name in needed]
    model.nested = {name: inner for name, inner in model.nested.items() if name in needed}
    model.outputs = [Tensor(end)]
    return others


def _outputs(model: Model) -> list[str]:
    """Names of the layers that a model gives."""
    is_line = model.class_name == 'Sequential'
    return [model.layers[-1].name or ''] if is_line else list(dict.fromkeys(tensor.layer for tensor in model.outputs))


def _all_names(model: Model) -> set[str]:
    return {layer.name or '' for inner in model.all() for layer in inner.layers}


def _ancestors(model: Model, name: str) -> set[str]:
    """A layer of a model, and all on which it depends."""
    names = [layer.name or '' for layer in model.layers]
    if model.class_name == 'Sequential':
        return set(names[: names.index(name) + 1])
    by_name, found, stack = dict(zip(names, model.layers)), set(), [name]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += by_name[name].inbound
    return found


def _ends(model: Model) -> list[str]:
    """Names of the layers whose output no other layer takes."""
    taken = {name for layer in model.layers for name in layer.inbound}
    return [layer.name or '' for layer in model.layers if layer.name not in taken]


def _find_xception(outer: Model) -> tuple[Model, dict[str, FileLayer]]:
    """The model that holds Xception, and all of its layers by their roles in figure 5."""
    found = [(model, found) for model in outer.all() if (found := match(model.layers))]
    model, best = max(found, key=lambda pair: len(pair[1].roles), default=(outer, None))
    if best and not best.deviation:
        return model, best.roles
    for model in outer.all():
        for layer in model.layers:
            if layer.class_name == 'TimeDistributed':
                raise Refused(
                    f'the TimeDistributed layer {layer.name!r} repeats a model. Save that by itself, '
                    f'model.get_layer({layer.name!r}).layer, and convert it.'
                )
    every = [layer for model in outer.all() for layer in model.layers]
    if best and (len(best.roles) > STEM or any(FIRST in (layer.name or '') for layer in every)):
        raise Refused(best.deviation)
    raise Refused(_no_xception(every))


def _no_xception(layers: list[FileLayer]) -> str:
    """Says which layers are missing, or that all are."""
    names = {layer.name for layer in layers}
    missing = [name for name in LAYERS if name not in names and 'residual' not in name]
    if FIRST in missing:
        return f'it holds no layer called {FIRST!r}, nor 34 SeparableConv2D in a row: this is no Xception of Keras.'
    if not missing:
        return (
            'it holds the layers of an Xception, but which of its unnamed ones are residual cannot be told. '
            'Pass --config FILE with what model.to_json() gives in Keras.'
        )
    return f'it holds an Xception that lacks {listed([*missing])}, {len(missing)} layers in all.'


def _identify(layers: list[FileLayer]) -> tuple[dict[str, FileLayer], str] | None:
    """Maps `names.LAYERS` to layers, and says what identified the residual ones; None if this is no whole Xception."""
    by_name = {layer.name: layer for layer in layers if layer.name}
    before, after = _affixes(by_name)
    found = {name: by_name[f'{before}{name}{after}'] for name in LAYERS if f'{before}{name}{after}' in by_name}
    if FIRST not in found:
        tops = [layer.top for layer in layers if layer.top]
        # in the weights of a model within another, layers that are not trained come last
        return _by_order(layers) if len({*tops}) == len(tops) else None
    how = 'name'
    if len(found) < len(LAYERS):  # Keras leaves the residual layers unnamed
        how = 'order'
        found.update(_residuals_by_order(layers, found))
    return (found, how) if len(found) == len(LAYERS) else None


def _affixes(names: Collection[str]) -> tuple[str, str]:
    """What stands before and after the names of all layers of Xception, as in an ensemble, or in a second instance."""
    named = [name for name in LAYERS if 'residual' not in name]
    for name in names:
        before, found, after = name.partition(FIRST)
        if found and all(f'{before}{other}{after}' in names for other in named):
            return before, after
    return '', ''


def _residuals_by_order(layers: list[FileLayer], named: dict[str, FileLayer]) -> dict[str, FileLayer]:
    """Finds the unnamed residual layers by their numbers, which rise with the block."""
    found = {}
    known = {id(layer) for layer in named.values()}
    for kind in ('conv', 'bn'):
        rest = [layer for layer in layers if layer.class_name == KERAS_CLASSES[kind] and id(layer) not in known]
        rest.sort(key=lambda layer: numbered(layer.name or '')[1])
        if len(rest) == len(RESIDUAL_BLOCKS):
            found.update({f'block{block}_residual_{kind}': layer for block, layer in zip(RESIDUAL_BLOCKS, rest)})
    return found


def _by_order(layers: list[FileLayer]) -> tuple[dict[str, FileLayer], str] | None:
    """Identifies layers with other names: the n-th of each class, if there are exactly as many as Xception has."""
    found: dict[str, FileLayer] = {}
    for kind, names in LISTED.items():
        of_class = [layer for layer in layers if layer.class_name == KERAS_CLASSES[kind]]
        enough = len(of_class) >= len(names) if kind == 'bn' else len(of_class) == len(names)
        if not enough:
            return None
        found.update(zip(names, of_class))
    return {name: found[name] for name in LAYERS}, 'order'


def _check_era(outer: Model) -> None:
    if any(layer.class_name in KERAS1_CLASSES for model in outer.all() for layer in model.layers):
        raise Refused(
            'Keras 1 wrote its config, which is not read. Add --config FILE with what model.to_json() gives '
            'of the same model, built in the Keras of today; the weights are read.'
        )


def _check_calls(outer: Model) -> None:
    """Refuses calls that change what a layer computes, and inputs and outputs from the middle of a model."""
    for model in outer.all():
        for layer in model.layers:
            place = f'the {layer.class_name} layer {layer.name!r}'
            if len(layer.calls) > 1:
                raise Refused(f'{place} is called {len(layer.calls)} times in one model. {WAY_OUT}')
            for call in layer.calls:
                _check_call(layer, call, place)
                for tensor in call.tensors:
                    # in Keras 2, a model has a call of its own before it is called
                    if tensor.output or not 0 <= tensor.node <= (tensor.layer in model.nested):
                        raise Refused(
                            f'{place} takes output {tensor.output} of call {tensor.node} of {tensor.layer!r}, which '
                            f'has one output and is called once.'
                        )
        if model.class_name != 'Sequential':
            _check_ends(model, outer)


def _check_call(layer: FileLayer, call: Call, place: str) -> None:
    is_step = operation_of(layer) in OPERATIONS and len(call.tensors) == 1
    numbers = {number for number, _ in layer.constants} if is_step else set()
    by_default = call.of_keras3 and layer.class_name in (*IMAGE_AUGMENTATIONS, 'Pipeline')
    for number, name, value in call.arguments:
        neutral = value is None or value is False or number in numbers or name == 'name'
        if not neutral and not (by_default and name == 'training'):
            raise Refused(
                f'{place} is called with {name or "a second argument"}={value!r:.200}, which changes what it computes. '
                f'Build the model in Keras without it, new.set_weights(old.get_weights()), and save the new one.'
            )


def _check_ends(model: Model, outer: Model) -> None:
    inputs = {layer.name for layer in model.layers if layer.class_name == 'InputLayer'}
    others = {layer.name for layer in model.layers} - inputs
    for tensor in model.inputs:
        if tensor.layer in others:
            raise Refused(f'a model in it begins at {tensor.layer!r}, which is no InputLayer. {WAY_OUT}')
    outputs, ends = [tensor.layer for tensor in model.outputs], _ends(model)
    if outputs != ends or any(tensor.output for tensor in model.outputs):
        choose = f' Choose one with --output-layer: {listed([*outputs])}.' if model is outer else f' {WAY_OUT}'
        raise Refused(f'the model ends in {listed([*ends])}, but its outputs are {listed([*outputs])}.{choose}')


def _input_of(outer: Model) -> tuple[tuple[int, int] | None, int]:
    for model in outer.all():
        for layer in model.layers:
            shape = layer.config.get('batch_shape') or layer.config.get('batch_input_shape')
            if isinstance(shape, list) and len(shape) == 4 and shape[3] in range(1, MAX_CHANNELS + 1):
                _, height, width, channels = shape
                known = all(isinstance(side, int) and side > 0 for side in (height, width))
                if known:
                    check_image_size(height, width)
                return ((height, width) if known else None), int(channels)
    raise Refused('its config has no input layer with [batch, height, width, channels].')


def check_image_size(height: int, width: int) -> None:
    if min(height, width) < MIN_IMG_SIZE:
        raise Refused(f'its images are {height}x{width}, but Xception takes at least {MIN_IMG_SIZE}.')
    if max(height, width) > MAX_IMG_SIZE:
        raise Refused(f'its images are {height}x{width}, more than {MAX_IMG_SIZE}.')


def _around_xception(
    outer: Model, home: Model, layers: dict[str, FileLayer]
) -> tuple[list[FileLayer], list[FileLayer]]:
    """The layers before Xception, and its last one with those after it: each takes the output of the one before."""
    line = list(_line(outer, home, layers))
    numbers = [number for number, layer in enumerate(line) if layer is layers[FIRST]]
    if len(numbers) != 1:
        raise Refused(f'the output {_outputs(outer)[0]!r} does not come from Xception.')
    before, after = line[: numbers[0]], line[numbers[0] + 1 :]
    return [layer for layer in before if layer.class_name != 'InputLayer'], after


def _line(model: Model, home: Model, layers: dict[str, FileLayer]) -> Iterator[FileLayer]:
    """All layers from image to output, nested models opened. Xception's first and last layer stand for all of it."""
    line = model.layers if model.class_name == 'Sequential' else _walk(model, home, layers)
    for layer in line:
        if layer.name in model.nested:
            yield from _line(model.nested[layer.name], home, layers)
        elif layer.class_name != 'InputLayer':
            yield layer


def _walk(model: Model, home: Model, layers: dict[str, FileLayer]) -> list[FileLayer]:
    """The layers of a model from its output back to its input, turned round."""
    by_name = {layer.name or '': layer for layer in model.layers}
    inside = {layer.name for layer in layers.values()} if model is home else set()
    outputs: tuple[str, ...] = tuple(_outputs(model))
    if len(outputs) != 1:
        raise Refused(
            f'a model in it has {len(outputs)} outputs. Choose one of them with --output-layer: {listed([*outputs])}.'
        )
    line: list[FileLayer] = []
    inbound: tuple[str, ...] = outputs
    while inbound:
        layer = by_name[inbound[0]]
        if layer in line:
            raise Refused(f'the layer {layer.name!r} is used twice.')
        if layer.name in inside:
            if layer is not layers[LAST]:
                raise Refused(f'it takes what {layer.name!r} computes, from the middle of Xception.')
            line.append(layer)
            layer = layers[FIRST]
        inbound = tuple(dict.fromkeys(layer.inbound))
        if len(inbound) > 1:
            branches = tuple(by_name[name] for name in inbound)
            (stem, *others) = {branch.inbound for branch in branches}
            if others or len(stem) != 1 or not all(branch.class_name in POOLS for branch in branches):
                raise _joins(model, layer, inbound, layers)
            layer, inbound = replace(layer, branches=branches), stem
        line.append(layer)
    known = _ancestors(model, outputs[0])
    for layer in model.layers:
        if layer.name not in known or (layer is line[-1] and layer.class_name != 'InputLayer'):
            raise Refused(
                f'the {layer.class_name} layer {layer.name!r} cannot be converted: it is not on the way from '
                f'image to output.{HINTS.get(layer.class_name, "")}'
            )
    return line[::-1]


def _joins(model: Model, layer: FileLayer, inbound: Sequence[str], layers: dict[str, FileLayer]) -> Refused:
    """What is wrong with a layer that takes several, and the way out."""
    what = f'the {layer.class_name} layer {layer.name!r} joins {listed([*inbound])}'
    choices = [name for name in inbound if _holds_xception(model, _ancestors(model, name))]
    if choices:
        return Joined(what, choices)
    if layer.name in model.nested:
        return Refused(f'{what}. In Keras, save model.get_layer({layer.name!r}) by itself, and convert that.')
    kept = behind(layer, layers[FIRST].top)
    return Refused(f'{what} before Xception. In Keras, save {kept}, which keeps the head.')


def _holds_xception(model: Model, names: Collection[str]) -> bool:
    """Whether some layers of a model are a whole Xception, or have one in them."""
    inner = [inner for name, nested in model.nested.items() if name in names for inner in nested.all()]
    parts = [[layer for layer in model.layers if layer.name in names], *(model.layers for model in inner)]
    return any(found is not None and not found.deviation for found in map(match, parts))
