"""Where each layer's arrays are in a weight file, for each of the three layouts that Keras has had.

Keras 1                  convolution2d_1/convolution2d_1_W:0
Keras 2                  xception/block1_conv1/kernel:0         below model_weights/ in a whole model
Keras 3, tf_keras' v3    layers/functional/layers/conv2d/vars/0
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import listed
from .graph import FileLayer
from .layer_settings import SETTINGS, Refused
from .names import AUGMENTATIONS, KERAS1_NAMES, KERAS_CLASSES, KINDS, LAYERS, group_name, numbered, numbers_of
from .weight_file import WeightFile

Kinds = Sequence[tuple[FileLayer, str]]  # layers with the kinds of their arrays, keys of `names.KINDS`


def layout_of(weights: WeightFile) -> 'Layout':
    """Recognises the layout by its groups."""
    return VarsLayout(weights) if PREFIX in weights or OLD_PREFIX in weights else GroupsLayout(weights)


# Names of the classes that Keras abbreviates in its groups and in the names it gives.
CLASSES = {group_name(name): name for name in (*SETTINGS, *AUGMENTATIONS, 'InputLayer', 'Functional', 'Sequential')}
CLASSES |= {'input': 'InputLayer', 'avg_pool': 'GlobalAveragePooling2D', 'max_pool': 'GlobalMaxPooling2D'}
# Classes of Xception's layers without arrays, by the end of their names.
OWN_CLASSES = {'act': 'Activation', 'pool': 'MaxPooling2D'}

PREFIX, OLD_PREFIX = 'layers', '_layer_checkpoint_dependencies'  # TensorFlow 2.12 and 2.13 used the second


class VarsLayout:
    """The layout since Keras 3: groups numbered by class, arrays numbered within. Keras 3.6 adds the layer's name.

    TensorFlow 2.12 counted each layer with arrays twice: its conv2d_2 is the second one, which others call conv2d_1.

    Attributes:
        groups: Path of a layer, numbered as the config's layers are -> its group in the file.
    """

    def __init__(self, weights: WeightFile) -> None:
        self.weights = weights
        self.groups: dict[str, str] = {}
        prefix = PREFIX if PREFIX in weights else OLD_PREFIX
        counts: dict[tuple[str, str], int] = {}
        paths = {'': ''}
        for group in sorted(weights.groups(), key=lambda group: (group.count('/'), numbered(group))):
            home, _, last = group.rpartition('/')
            outer, _, own = home.rpartition('/')
            if own == prefix and outer in paths:
                stem, number = numbered(last)
                if prefix == OLD_PREFIX:
                    number = counts[home, stem] = counts.get((home, stem), -1) + 1
                path = f'{paths[outer]}/{PREFIX}/{stem}'.lstrip('/') + (f'_{number}' if number else '')
                paths[group], self.groups[path] = path, group

    def layers(self) -> list[FileLayer]:
        """Lists the layers that the file names, in Keras' order. It is used for weights that come without a config."""
        found = []
        for path, group in self.groups.items():
            home, _, last = path.rpartition('/')
            stem, number = numbered(last)
            layer = FileLayer(self.weights.attribute(f'{group}/vars', 'name'), CLASSES.get(stem, stem), path)
            found.append(((home, stem, number), layer))
        return [layer for _, layer in sorted(found, key=lambda item: item[0])]

    def place_of(self, layer: FileLayer) -> str:
        """How the paths of a layer of the outermost model, and of all within it, begin."""
        return f'{self.groups.get(layer.path, layer.path)}/'

    def paths(self, layers: Kinds) -> dict[FileLayer, dict[str, str]]:
        """For each layer, Keras' names of its arrays and their paths, which need not exist.

        Raises:
            Refused: A layer could be at several places, or its place belongs to another one.
        """
        found = {}
        for layer, kind in layers:
            group = f'{self.place_of(layer)}vars'
            name, saved = layer.name or '', self.weights.attribute(group, 'name')
            # numbers that Keras gives rise within a session; the place in the file is the same
            renumbered = is_numbered(name, layer.class_name) and numbered(saved or '')[0] == numbered(name)[0]
            if name and saved not in (None, name) and not renumbered:
                raise Refused(f'{group!r} is called {saved!r}, not {name!r}.')
            found[layer] = {keras: f'{group}/{i}' for i, (keras, _, _) in enumerate(KINDS[kind])}
        return found


WHOLE_MODEL = 'model_weights'
NO_LAYERS = ('top_level_model_weights', 'optimizer_weights')
# What Keras 1 called arrays and layers. `running_std` holds variances in spite of its name.
KERAS1_VARIABLES = {'kernel': 'W', 'bias': 'b', 'moving_mean': 'running_mean', 'moving_variance': 'running_std'}
OLD_VARIABLES = {old: new for new, old in KERAS1_VARIABLES.items()}
OLD_STEMS = {old: group_name(KERAS_CLASSES[kind]) for kind, old in KERAS1_NAMES.items()} | {
    'functional': 'model',
    'globalaveragepooling2d': 'global_average_pooling2d',
    'globalmaxpooling2d': 'global_max_pooling2d',
}
KERAS1_ARRAY = re.compile(r'(.+)_(W|b|gamma|beta|running_mean|running_std|depthwise_kernel|pointwise_kernel)')


def stem_of(name: str) -> str:
    """The part of a name that Keras gave which stands for the class, in the words of today."""
    stem = re.sub(r'(_v[12])?(_\d{1,9})*$', '', name)
    return OLD_STEMS.get(stem, stem)


@dataclass
class Owner:
    """What a file says of a layer with arrays: the end of its path, and the paths of its arrays by their names."""

    name: str
    arrays: dict[str, str] = field(default_factory=dict)


class GroupsLayout:
    """The layout of Keras 1 and 2: a group for each layer of the outermost model, which lists its arrays.

    A layer of the outermost model has all arrays of its group, whatever their paths say: Keras numbers these anew when
    a model is built a second time. In the group of a nested model arrays are found by their layers' names. The order of
    the list depends on which layers are frozen, so it is only used to confirm, see `by_position`.
    """

    def __init__(self, weights: WeightFile) -> None:
        self.weights = weights
        self.root = f'{WHOLE_MODEL}/' if WHOLE_MODEL in weights else ''
        self.groups: dict[str, list[Owner]] = {}
        for group in self.weights.attribute(self.root.rstrip('/'), 'layer_names') or []:
            if group not in NO_LAYERS and group not in self.groups:
                self.groups[group] = self._owners(group)

    def arrays_of(self, group: str) -> list[str]:
        """The arrays of a group, as it lists them: paths below it."""
        return self.weights.attribute(f'{self.root}{group}', 'weight_names') or []

    def _owners(self, group: str) -> list[Owner]:
        owners: dict[str, Owner] = {}
        for array in self.arrays_of(group):
            owner, _, variable = array.removesuffix(':0').rpartition('/')
            old = None if owner else KERAS1_ARRAY.fullmatch(variable)
            if old:
                owner, variable = old[1], OLD_VARIABLES.get(old[2], old[2])
            place = owners.setdefault(owner, Owner(owner.rpartition('/')[2]))
            path = f'{self.root}{group}/{array}'
            if variable in place.arrays:
                raise Refused(f'{path!r} and {place.arrays[variable]!r} have the same name.')
            place.arrays[variable] = path
        return list(owners.values())

    @property
    def is_keras1(self) -> bool:
        """Whether Keras 1 wrote the file."""
        return any(stem in KERAS1_NAMES.values() for stem in (numbered(group)[0] for group in self.groups))

    @property
    def is_release(self) -> bool:
        """Whether it is one of the two files that Keras publishes, or has their layout."""
        counts = Counter(KERAS1_NAMES[layer.kind] for layer in LAYERS.values())
        return all(f'{stem}_{i + 1}' in self.groups for stem, count in counts.items() for i in range(count))

    def layers(self) -> list[FileLayer]:
        if self.is_keras1 and next(iter(LAYERS)) not in self.groups:
            return self._layers_of_keras1()
        found = []
        for group, owners in self.groups.items():
            if len(owners) < 2:
                own = OWN_CLASSES.get(group.rpartition('_')[2], stem_of(group))
                class_name = self._class_of(owners[0]) if owners else CLASSES.get(stem_of(group), own)
                found.append(FileLayer(group, class_name, top=group))
            else:
                found += [FileLayer(owner.name, self._class_of(owner), top=group) for owner in owners]
        return found

    def _layers_of_keras1(self) -> list[FileLayer]:
        """Xception's layers without names, by their numbers, which rise in the order of creation, then the head's."""
        groups = sorted(self.groups, key=numbered)
        found: list[FileLayer] = []
        for kind, stem in KERAS1_NAMES.items():
            names = [name for name, layer in LAYERS.items() if layer.kind == kind]
            ours = [group for group in groups if numbered(group)[0] == stem]
            found += [FileLayer(name, KERAS_CLASSES[kind], top=group) for name, group in zip(names, ours)]
        known = {layer.top for layer in found}
        rest = [group for group in groups if group not in known and self.groups[group]]
        found += [FileLayer(group, self._class_of(self.groups[group][0]), top=group) for group in rest]
        pools = [group for group in groups if CLASSES.get(stem_of(group), '').startswith('Global')]
        if self.is_release and rest:
            pools = ['avg_pool']  # an unnamed one
        return [*found, *(FileLayer(group, CLASSES.get(stem_of(group), 'GlobalAveragePooling2D')) for group in pools)]

    def _class_of(self, owner: Owner) -> str:
        if 'depthwise_kernel' in owner.arrays:
            return 'SeparableConv2D'
        if 'moving_mean' in owner.arrays:
            return 'BatchNormalization'
        if 'kernel' in owner.arrays:
            return 'Conv2D' if len(self.weights.shape(owner.arrays['kernel'])) == 4 else 'Dense'
        return owner.name

    def place_of(self, layer: FileLayer) -> str:
        return f'{self.root}{layer.top}/'

    def paths(self, layers: Kinds) -> dict[FileLayer, dict[str, str]]:
        """As of the other layout."""
        found = {}
        for group, pairs in self._grouped(layers):
            inside = [layer for layer, _ in pairs]
            owners = self.groups.get(group, [])
            if len(inside) == 1 and (len(owners) == 1 or inside[0].name == inside[0].top):
                places = dict(zip(inside, owners)) if len(owners) == 1 else {}
            else:
                by_name = {owner.name: owner for owner in owners}
                if len(by_name) < len(owners):
                    raise Refused(f'several layers in {group!r} have the same name.')
                names = self._match({(layer.name or '', layer.class_name): None for layer in inside}, list(by_name))
                places = {layer: by_name[name] for layer in inside if (name := names[layer.name or '']) in by_name}
            for layer, kind in pairs:
                owner = places.get(layer, Owner(f'{group}/{layer.name}'))
                absent = f'{self.root}{owner.name}'
                found[layer] = {keras: owner.arrays.get(keras, f'{absent}/{keras}') for keras, _, _ in KINDS[kind]}
        return found

    def _grouped(self, layers: Kinds) -> list[tuple[str, Kinds]]:
        """The layers by the groups that hold their arrays. A single group holds all, as `multi_gpu_model` made it."""
        with_arrays = [group for group, owners in self.groups.items() if owners]
        tops = dict.fromkeys((layer.top, layer.outer_class) for layer, _ in layers)
        if len(with_arrays) == 1 and len(tops) > 1:
            return [(with_arrays[0], layers)]
        matched = self._match(tops, with_arrays)
        return [(group, [pair for pair in layers if pair[0].top == top]) for top, group in matched.items()]

    def by_position(self, layers: Kinds) -> list[tuple[str, str]]:
        """Reads the lists of arrays by their order, as Keras' own loader does, and compares with `paths`.

        Keras lists what is trained first, then the rest, each in the order of the layers.

        Args:
            layers: All layers with arrays in the order of the config, which says which are trained.

        Returns:
            For each array its path in the file and the path that the order gives, where these differ.
        """
        different = []
        places = self.paths(layers)
        for group, inside in self._grouped(layers):
            expected = [
                places[layer][keras]
                for trained in (True, False)
                for layer, kind in inside
                for keras, _, _ in KINDS[kind]
                if trained == (layer.config.get('trainable', True) and not keras.startswith('moving_'))
            ]
            known = set(expected)  # others, such as the state of a random generator, are in no order with these
            listed = [f'{self.root}{group}/{array}' for array in self.arrays_of(group)]
            listed = [path for path in listed if path in known]
            different += [(one, other) for one, other in zip(expected, listed) if one != other]
        return different

    def _match(self, wanted: Mapping[tuple[str, str], None], there: Sequence[str]) -> dict[str, str]:
        """The name in the file for each name in the config, whose numbers may be others.

        A name that its author gave is in the file, perhaps with a number behind it that Keras added. Names that Keras
        gave are matched by class and order, if there are as many in the file.
        """
        found: dict[str, str] = {}
        by_class: dict[str, list[str]] = {}
        known = set(there)
        again: dict[str, list[str]] = {}  # name -> those with a number behind it
        for name in there:
            again.setdefault(numbered(name)[0], []).append(name)
        for name, class_name in wanted:
            if is_numbered(name, class_name):
                by_class.setdefault(stem_of(name), []).append(name)
                continue
            others = [name] if name in known else [other for other in again.get(name, []) if other != name]
            if len(others) > 1:
                raise Refused(f'the layer {name!r} may be {listed(others)}.')
            found[name] = others[0] if others else name
        free: dict[str, list[str]] = {}  # class -> names that are not taken
        taken = set(found.values())
        for name in there:
            if name not in taken:
                free.setdefault(stem_of(name), []).append(name)
        for stem, names in by_class.items():
            others = free.get(stem, [])
            if set(names) <= set(others):
                found.update(zip(names, names))
            elif len(names) == len(others):
                found.update(zip(sorted(names, key=numbers_of), sorted(others, key=numbers_of)))
            else:
                raise Refused(
                    f'the config has {len(names)} layers called {stem} and a number '
                    f'({listed(sorted(names, key=numbers_of))}), the weights {len(others)} '
                    f'({listed(sorted(others, key=numbers_of))}): which is which cannot be told.'
                )
        return found


def is_numbered(name: str, class_name: str) -> bool:
    """Whether Keras gave a name itself: that of the class, and a number."""
    stem, of_class = stem_of(name), group_name(class_name)
    return stem == OLD_STEMS.get(of_class, of_class)


Layout = VarsLayout | GroupsLayout  # with the same methods
