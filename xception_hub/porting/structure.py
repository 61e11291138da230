"""Where Xception is in a Keras model, and what stands before and after it, read as data.

config   -> the graph of all layers -> before | Xception | after
weights alone -> the layers that have arrays, and a head that leaves no choice
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import KerasFileError, listed
from ..layers import MIN_IMG_SIZE
from .figure5 import FIGURE5, FIRST, LAST, compare, match
from .graph import MAX_LAYERS, FileLayer, Model, all_layers, check_call, read_model, trace
from .keras_head import MAX_CHANNELS, POOLS, FileHead, Step, read_bare_head, read_head, read_steps
from .layer_settings import Refused
from .names import KERAS_CLASSES, LAYERS, numbered, numbers_of
from .preprocessing import Rescaling

MAX_IMG_SIZE = 4096  # pixels; both networks are compared at this size
STEM = 6  # layers of the first module, which other networks have too
KERAS1_CLASSES = ('Convolution2D', 'SeparableConvolution2D', 'Merge')


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
        ignored: Names of training-only layers.
        others: Layers that lead to other outputs than the chosen one.
        roles: Key of `figure5.FIGURE5` -> the file's layer; empty for weights alone, which say no settings and wires.
        arguments: Arguments of `xception_hub.Xception` for settings that all layers of a class have in common.
        model: The model that the config describes; None for weights alone.
        preset: What a preset of KerasHub says of images, as arguments of `Preprocessing`; None if it is none.
    """

    layers: dict[str, FileLayer]
    head: FileHead = field(default_factory=FileHead)
    steps: list[Step] = field(default_factory=list)
    rescaling: Rescaling = (1.0, 0.0)
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    ignored: list[str] = field(default_factory=list)
    others: list[FileLayer] = field(default_factory=list)
    roles: dict[str, FileLayer] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    model: Model | None = None
    preset: dict[str, Any] | None = None


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
        outer = read_model(config)
        every = [*all_layers(outer)]
        if any(layer.class_name in KERAS1_CLASSES for layer in every):
            raise Refused(
                'Keras 1 wrote its config, which is not read. Add --config FILE with what model.to_json() gives '
                'of the same model, built in the Keras of today; the weights are read.'
            )
        output, graph = trace(outer, output_layer)
        roles = _find_xception(graph, every)
        layers = {role: roles[role] for role in LAYERS}
        structure = Structure(layers, roles=roles, model=outer)
        structure.others = [layer for layer in every if layer not in {*graph}]
        structure.arguments = compare(roles)
        inside = {*roles.values()}
        for layer in graph:
            middle = inside & {*layer.inputs} - {roles[LAST]}
            if middle and layer not in inside:
                raise Refused(f'{layer} takes what {middle.pop().name!r} computes, from the middle of Xception.')
        after = _line(output, roles[LAST])
        before = _line(roles[FIRST])[:-1]
        structure.image_size, structure.channels = _input_of([*before[:1], *every])
        before = [layer for layer in before if layer.class_name != 'InputLayer']
        structure.steps, ignored = read_steps(before, layers[FIRST].top)
        structure.head = read_head(after, structure.image_size)
        used = {*graph}
        models = [model.outer[1] for model in outer.all() if model.outer and used & {*model.layers.values()}]
        for layer in [*graph, *models]:
            check_call(layer)
        structure.ignored = ignored + structure.head.ignored
    except Joined as e:
        names = dict.fromkeys([*e.names, roles[LAST].name or ''])
        choices = ', '.join(name for name in names if _converts(config, name))
        way_out = f' Choose what can with --output-layer: {choices}.' if choices else ''
        raise KerasFileError(f'{source}: {e}, which cannot be converted.{way_out}') from e
    except Refused as e:
        raise KerasFileError(f'{source}: {e}') from e
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError) as e:
        raise KerasFileError(f'{source}: its config is not that of a Keras model ({type(e).__name__}: {e}).') from e
    return structure


class Joined(Refused):
    """A layer takes several outputs, those of the layers `names`."""

    def __init__(self, layer: FileLayer) -> None:
        self.names = [tensor.layer for tensor in layer.calls[0].tensors]
        super().__init__(f'{layer} joins {listed(self.names)}')


def _converts(config: Any, output_layer: str) -> bool:
    try:
        parse(config, '', output_layer)
    except KerasFileError:
        return False
    return True


def _find_xception(graph: Sequence[FileLayer], every: Sequence[FileLayer]) -> dict[str, FileLayer]:
    """All layers of Xception by their roles in figure 5."""
    best = match(graph)
    if best and not best.deviation:
        return best.roles
    for layer in every:
        if layer.class_name == 'TimeDistributed':
            raise Refused(
                f'{layer} repeats a model. Save that by itself, model.get_layer({layer.name!r}).layer, and convert it.'
            )
    if best and (len(best.roles) > STEM or any(FIRST in (layer.name or '') for layer in every)):
        raise Refused(best.deviation)
    raise Refused(_no_xception(every))


def _no_xception(layers: Sequence[FileLayer]) -> str:
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


def _line(end: FileLayer, start: FileLayer | None = None) -> list[FileLayer]:
    """The layers from `start`, or from the images, to `end`. Each takes the output of the one before.

    Poolings of the same maps that a layer joins are left out: they are its `inputs`.
    """
    line: list[FileLayer] = [end]
    while line[-1] is not start and line[-1].class_name != 'InputLayer':
        layer = line[-1]
        sources = {*layer.inputs}
        if len(sources) > 1:
            if not all(source.class_name in POOLS for source in sources):
                sources = set()
            sources = {stem for source in sources for stem in source.inputs}
            if len(sources) != 1:
                if start:
                    raise Joined(layer)
                break  # such a layer is none that may stand before Xception
        (source,) = sources
        if source in line:
            raise Refused(f'{source} is used twice.')
        line.append(source)
    if start and line[-1] is not start:
        raise Refused(f'the output {end.name!r} does not come from Xception.')
    return line[::-1]


def _input_of(layers: Sequence[FileLayer]) -> tuple[tuple[int, int] | None, int]:
    """Height and width of the images, if the first of the layers that takes images says it, and their channels."""
    for layer in layers:
        shape = layer.config.get('batch_shape') or layer.config.get('batch_input_shape')
        if isinstance(shape, list) and len(shape) == 4 and shape[3] in range(1, MAX_CHANNELS + 1):
            _, height, width, channels = shape
            known = all(isinstance(side, int) and side > 0 for side in (height, width))
            if known:
                check_image_size(height, width)
            return ((height, width) if known else None), int(channels)
    raise Refused('its config has no input layer with [batch, height, width, channels].')


def check_image_size(height: int, width: int) -> None:
    """Refuses a height or width, in pixels, that Xception or the comparison with Keras cannot take."""
    if not MIN_IMG_SIZE <= min(height, width) <= max(height, width) <= MAX_IMG_SIZE:
        raise Refused(
            f'its images are {height}x{width}, but height and width must be from {MIN_IMG_SIZE} to {MAX_IMG_SIZE}.'
        )


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
    for home in [*reversed(homes.values()), *([layers] if len(homes) > 1 else [])]:
        if found := _identify(home):
            ours = {*found.values()}
            head = read_bare_head([layer for layer in layers if layer not in ours])
            return Structure(found, head, ignored=head.ignored)
    raise Refused(_no_xception(layers))


def _identify(layers: Sequence[FileLayer]) -> dict[str, FileLayer] | None:
    """Maps `names.LAYERS` to layers; None if this is no whole Xception.

    Layers that Keras' Xception names are found by their names, perhaps with a number that TensorFlow 1 added. If none
    has such a name, they are the n-th of their classes. So are the residual ones, which Keras leaves unnamed.
    """
    names = [(layer.name or '', numbered(layer.name or '')) for layer in layers]
    found = {stem if stem in LAYERS else name: layer for (name, (stem, _)), layer in zip(names, layers)}
    found = {name: found[name] for name in LAYERS if name in found}
    if sum(stem in LAYERS for _, (stem, _) in names) > len(found):
        return None  # two of them
    named = bool(found)
    for kind in ('conv', 'sepconv', 'bn'):
        # in Keras' order, in which residual normalizations come after those that they are computed before
        missing = [role for role in FIGURE5 if role in LAYERS and LAYERS[role].kind == kind and role not in found]
        known = {*found.values()}
        rest = [layer for layer in layers if layer.class_name == KERAS_CLASSES[kind] and layer not in known]
        if named:
            rest.sort(key=lambda layer: numbers_of(layer.name or ''))  # they rise with the block
        if missing:
            enough = len(rest) == len(missing) or (not named and kind == 'bn' and len(rest) > len(missing))
            if not enough or (named and not all('residual' in name for name in missing)):
                return None
            found.update(zip(missing, rest))
    if not named and len({layer.top for layer in layers if layer.top}) < sum(bool(layer.top) for layer in layers):
        raise Refused(
            'it holds an Xception whose layers have names of their own, in a group whose order depends on which '
            'of them were frozen. Pass --config FILE with what model.to_json() gives in Keras.'
        )
    return {name: found[name] for name in LAYERS}
