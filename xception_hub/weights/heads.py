"""The head of a file of another layout: which of its layers are the classifier, and the layers before it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch

from ..errors import CheckpointError, listed
from ..head import HeadLayer, head_layer_names
from .checkpoint_files import StateDict
from .layouts import Recognised, quoted, takes_features

MAX_LAYERS = 500  # beside the backbone, among which a head is searched
# Part of a layer's path -> what it is in a file whose classifier takes the backbone's features.
OFF_THE_PATH = {'adjust_channel': "a projection of DeepfakeBench's other detectors, beside the path to the classifier"}


def _linear(tensors: StateDict) -> StateDict | None:
    weight = tensors.get('weight')
    if weight is None or not tensors.keys() <= {'weight', 'bias'} or weight.dim() not in (2, 4):
        return None
    return {**tensors, 'weight': weight.flatten(1)} if weight.shape[2:].numel() == 1 else None


def _batch_norm(tensors: StateDict) -> StateDict | None:
    is_norm = tensors.keys() == {'weight', 'bias', 'running_mean', 'running_var'} and tensors['weight'].dim() == 1
    return tensors if is_norm else None


# Kind of a layer in `head_layers` -> its tensors in a file as a head here has them, None for those of another layer.
KINDS: dict[str, Callable[[StateDict], StateDict | None]] = {'fc': _linear, 'bn': _batch_norm}


@dataclass(eq=False)
class Layer:
    """A layer beside the backbone that a head can have.

    Attributes:
        name: Name in the file.
        kind: One of `KINDS`.
        tensors: Its tensors, as a head here has them.
        is_convolution: Whether it is a 1x1 convolution in the file.
    """

    name: str
    kind: str
    tensors: StateDict
    is_convolution: bool = False

    @property
    def takes(self) -> int:
        return self.tensors['weight'].shape[-1]

    @property
    def returns(self) -> int:
        return self.tensors['weight'].shape[0]


@dataclass(eq=False)
class Chain:
    """Layers that follow each other.

    Attributes:
        name: Name of the Sequential that holds them, or of the last layer.
        layers: All layers with tensors.
    """

    name: str
    layers: list[Layer]

    @property
    def classifier(self) -> Layer:
        return self.layers[-1]

    @property
    def is_hidden(self) -> bool:
        """Whether there are layers before the classifier."""
        return len(self.layers) > 1

    @property
    def num_classes(self) -> int:
        return self.classifier.returns

    def is_attention(self, features: int) -> bool:
        """Whether it returns all features by way of fewer, as squeeze and excitation does."""
        narrow = any(layer.takes != features for layer in self.layers)
        return narrow and self.classifier.kind == 'fc' and self.classifier.returns == features

    def up_to(self, layer: Layer) -> 'Chain':
        end = self.layers.index(layer) + 1
        return self if end == len(self.layers) else Chain(layer.name, self.layers[:end])

    def __str__(self) -> str:
        widths = (self.layers[0].takes, *(layer.returns for layer in self.layers if layer.kind == 'fc'))
        return f'{self.name} ({" -> ".join(map(str, widths))} features)'


def chains_of(found: Recognised) -> list[Chain]:
    """The layers beside the backbone that a head can have, in the order of the file: a chain is of one Sequential."""
    groups: dict[str, dict[str, Layer | None]] = {}
    for name, tensors in islice(found.beside.items(), MAX_LAYERS):
        own = {kind: known for kind, reader in KINDS.items() if (known := reader(tensors))}
        layer = next((Layer(name, kind, own[kind], tensors['weight'].dim() == 4) for kind in own), None)
        parent, _, place = name.rpartition('.')
        groups.setdefault(parent if parent and place.isdigit() else name, {})[name] = layer
    chains = []
    for group, named in groups.items():
        layers = [layer for layer in named.values() if layer]
        if len(layers) == len(named) and all(before.returns == after.takes for before, after in pairwise(layers)):
            chains.append(Chain(group.removeprefix(found.prefix), layers))
        else:
            chains += [Chain(layer.name.removeprefix(found.prefix), [layer]) for layer in layers]
    return chains


def find_head(
    found: Recognised,
    source: str,
    classifier: str | None = None,
    head_layers: Sequence[HeadLayer] = (),
    global_pool: str = 'avg',
) -> Chain | None:
    """The head to take of those beside the backbone; None if there is none, or if the network has its own.

    What is not taken is left out of `found`.

    Args:
        found: The network.
        source: Name of the checkpoint in errors.
        classifier: Name of the layer, the Sequential or the tensor to take.
        head_layers: The layers before the classifier, if the caller names them.
        global_pool: The pooling before the head; some double the features.

    Raises:
        CheckpointError: There are several, or other layers that the network may compute with.
    """
    features = found.num_features * (2 if 'cat' in global_pool else 1)
    if any(name.startswith('head.') for name in found.tensors):
        if classifier in {
            f'{prefix}head.fc{kind}' for prefix in ('', found.prefix) for kind in ('', '.weight', '.bias')
        }:
            found.drop(found.beside, "not the classifier 'head.fc'")
            return None
        if classifier is None and not found.beside:
            return None
        if classifier is None:
            raise CheckpointError(
                f'{source} holds a classifier, head.fc, and other layers beside the network: {quoted(found.beside)}. '
                f"Choose with classifier='head.fc' or another name, or none with num_classes=0."
            )
    if classifier is not None:
        classifier = _name_as_layer(found, classifier, features) or classifier
    chains = chains_of(found)
    if classifier is not None:
        chain: Chain | None = _chosen(found, chains, source, classifier, features)
    else:
        aside = {name: what for part, what in OFF_THE_PATH.items() for name in found.beside if part in name.split('.')}
        heads = _heads([chain for chain in chains if chain.layers[0].name not in aside], features)
        if heads:
            for name, what in aside.items():
                found.drop([name], what)
        chain = _only(heads or _heads(chains, features), chains, source, features)
    if chain and head_layers:
        chain = _assigned(chain, chains, source, head_layers, features)
    others = [name for name in found.beside if chain is None or name not in {layer.name for layer in chain.layers}]
    if others and classifier is None:
        raise _no_place(found, chains, source, chain, others)
    if chain:
        found.drop(others, f'not the classifier {chain.name!r}: if the network computes with them, this is another one')
        found.drop_own_head(f'not the classifier {chain.name!r}')
    return chain


def drop_heads(found: Recognised, reason: str) -> None:
    """Leaves out all layers beside the backbone. The reason is that for heads: other layers may stand anywhere."""
    chains, features = chains_of(found), found.num_features
    heads = [head for width in (features, 2 * features) for head in _heads(chains, width)]
    known = {layer.name for head in heads for layer in head.layers}
    others = [name for name in found.beside if name not in known]
    found.drop(others, f'{reason}; where the backbone computes with them, its features are others')
    found.drop(found.beside, reason)
    found.drop_own_head(reason)


def _path_to(before: Sequence[Chain], end: Chain, features: int) -> Chain:
    """What leads to a chain: each takes what the nearest before it in the file returns."""
    path = end
    for chain in reversed(before):
        widens = chain.classifier.kind == 'fc' and chain.layers[0].takes != features == chain.classifier.returns
        follows = chain.classifier.returns == path.layers[0].takes
        if follows and not widens and not chain.is_attention(features):
            path = Chain(end.name, chain.layers + path.layers)
    return path


def _heads(chains: Sequence[Chain], features: int) -> list[Chain]:
    """Chains from the features to a classifier."""
    paths: list[Chain] = []
    for i in reversed(range(len(chains))):
        path = _path_to(chains[:i], chains[i], features)
        is_within = any(path.classifier in other.layers for other in paths)
        if path.classifier.kind == 'fc' and path.layers[0].takes == features and not is_within:
            paths.insert(0, path)
    return [path for path in paths if not path.is_attention(features)]


def _only(heads: Sequence[Chain], chains: Sequence[Chain], source: str, features: int) -> Chain | None:
    if len(heads) > 1:
        raise CheckpointError(
            f'{source} holds {len(heads)} classifiers: {quoted(head.name for head in heads)}. Choose one with '
            f'classifier={heads[0].name!r}, or none with num_classes=0. A network that computes with several is '
            f'another one.'
        )
    if not heads and (doubled := _heads(chains, 2 * features)):
        raise _two_poolings(doubled[0], source, features)
    return heads[0] if heads else None


def _two_poolings(head: Chain, source: str, features: int) -> CheckpointError:
    first = next(i for i, layer in enumerate(head.layers) if layer.kind == 'fc')
    names = [f'{layer.name}.{kind}' for layer in head.layers[:first] for kind in layer.tensors]
    return CheckpointError(
        f'{source}: {head.name} takes {2 * features} features, of two poolings or of two networks. Pass '
        f"global_pool='catavgmax' if the averages come first, as in timm. If the maxima come first, as in fastai, "
        f'exchange them in the state dict before: for name in {[*names, f"{head.layers[first].name}.weight"]}: '
        f'state[name] = state[name].roll({features}, min(1, state[name].dim() - 1)). num_classes=0 takes the backbone '
        f'without any head.'
    )


def _chosen(found: Recognised, chains: Sequence[Chain], source: str, classifier: str, features: int) -> Chain:
    """The head that ends with the layer, the Sequential or the tensor of a name."""
    ends: dict[str, tuple[int, Chain]] = {}  # path in the file -> number of a chain, and the chain up to this path
    for i, chain in enumerate(chains):
        for layer in chain.layers:
            names = [layer.name, *(f'{layer.name}.{kind}' for kind in layer.tensors)]
            ends |= dict.fromkeys(names, (i, chain.up_to(layer)))
        ends |= dict.fromkeys([chain.name, f'{found.prefix}{chain.name}'], (i, chain))
    exact = [ends[name] for name in (f'{found.prefix}{classifier}', classifier) if name in ends]
    matches = exact[:1] or [*{id(end[1]): end for name, end in ends.items() if _ends_with(name, classifier)}.values()]
    if len(matches) != 1:
        own = ['head.fc'] * any(name.startswith('head.') for name in found.tensors)
        shown = dict.fromkeys([*own, *(end.name.removeprefix(found.prefix) for _, end in ends.values())])
        raise CheckpointError(f'{source} has no classifier {classifier!r}. It has: {quoted(shown)}.')
    head = _path_to(chains[: matches[0][0]], matches[0][1], features)
    if head.layers[0].takes == 2 * features:
        raise _two_poolings(head, source, features)
    if head.classifier.kind != 'fc' or head.layers[0].takes != features:
        raise CheckpointError(
            f'{source}: {classifier} is no chain of linear layers and normalizations on {features} features. '
            f'num_classes=0 takes the backbone without any head.'
        )
    return head


def _ends_with(name: str, part: str) -> bool:
    return f'.{name}'.endswith(f'.{part}')


def _name_as_layer(found: Recognised, classifier: str, features: int) -> str | None:
    """Makes a matrix of another name than weight a layer, and returns this layer's name; None if none is so called."""
    for layer, kind in _matrices(found, features):
        path = f'{layer}.{kind}'.lstrip('.')
        if _ends_with(path, classifier) or (layer and _ends_with(layer, classifier)):
            tensors = found.beside[layer]
            weight = tensors.pop(kind)
            own = {'weight': weight if weight.shape[1] == features else weight.T.contiguous()}
            if layer:
                own |= found.beside.pop(layer)
            found.beside[path] = own
            return path
    return None


def _matrices(found: Recognised, features: int) -> list[tuple[str, str]]:
    """Layers of one matrix, [classes, features] or [features, classes], which has another name than weight."""
    return [
        (layer, kind)
        for layer, tensors in found.beside.items()
        for kind, tensor in tensors.items()
        if kind != 'weight' and tensor.dim() == 2 and takes_features(tensor, features)
        if not layer or tensors.keys() <= {kind, 'bias'}
    ]


def _no_place(
    found: Recognised, chains: Sequence[Chain], source: str, head: Chain | None, others: Sequence[str]
) -> CheckpointError:
    """The error for layers that the network may compute with."""
    own = set(head.layers) if head else set()
    apart = [chain for chain in chains if not own & set(chain.layers) and chain.layers[0].name in others]
    known = {layer.name for chain in apart for layer in chain.layers}
    unknown = sorted(
        f'{name}.{kind}'.lstrip('.') + f' {list(tensor.shape)}'
        for name in others
        if name not in known
        for kind, tensor in found.beside[name].items()
    )
    is_attention = any(chain.is_attention(found.num_features) for chain in apart)
    ways = f', and classifier={head.name!r} that head alone' if head else ''
    for layer, kind in [] if head else _matrices(found, found.num_features)[:1]:
        ways = f', and classifier={f"{layer}.{kind}".lstrip(".")!r} a linear layer of this matrix'
    if head and not unknown and not is_attention:
        before = [layer for chain in chains for layer in chain.layers if layer is not head.classifier]
        ways += f'. If all are layers of one head, name them in their order, such as head_layers={_described(before)}'
    return CheckpointError(
        f'{source} holds tensors that this network has no place for, and may compute with them: '
        f'{listed([*map(str, apart), *unknown])}{", as attention does" if is_attention else ""}. Without them it is '
        f'another function: num_classes=0 takes the backbone without any head{ways}.'
    )


def _assigned(
    head: Chain, chains: Sequence[Chain], source: str, head_layers: Sequence[HeadLayer], features: int
) -> Chain:
    """The file's layers in the order in which the caller names them, those of the head first."""
    width, layers = features, []
    free = [layer for layer in head.layers if layer is not head.classifier]
    free += [layer for chain in chains for layer in chain.layers if layer not in head.layers]
    for wanted in head_layers:
        kind = next((kind for kind in KINDS if kind in wanted), None)
        if kind:
            returns = wanted.get('fc', width)
            fits = [layer for layer in free if (layer.kind, layer.takes, layer.returns) == (kind, width, returns)]
            layers += fits[:1]
            free = [layer for layer in free if layer not in layers]
            width = returns if fits else 0
    if width != head.classifier.takes or not set(head.layers) <= {*layers, head.classifier}:
        raise CheckpointError(
            f'{source}: {head.name} has other layers than head_layers={[dict(layer) for layer in head_layers]}: rather '
            f'{_described(head.layers[:-1])}, of which only fc and bn are in the file. num_classes=0 takes the '
            f'backbone without any head.'
        )
    parent, _, place = head.classifier.name.rpartition('.')
    apart = [layer for layer in layers if not place.isdigit() or layer.name.rpartition('.')[0] != parent]
    known = {(layer.kind, layer.takes, layer.returns) for layer in apart}
    if also := [layer.name for layer in free if (layer.kind, layer.takes, layer.returns) in known]:
        raise CheckpointError(
            f'{source}: {quoted(also)} could stand in {head.name} as well as {quoted(layer.name for layer in layers)}. '
            f'Remove the tensors of those that do not: del state[...].'
        )
    return Chain(head.name, [*layers, head.classifier])


def _described(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Layers before a classifier as `head_layers` has them, with a guess for those that the file does not name."""
    described: list[dict[str, Any]] = []
    for layer, following in zip(layers, [*layers[1:], None]):
        described.append({'fc': layer.returns} if layer.kind == 'fc' else {'bn': 1e-5})
        ends = following is None or following.kind == 'fc'
        if ends and any('fc' in before for before in described[-2:]):
            described.append({'act': 'relu'})
    return described


def take_head(
    found: Recognised,
    head: Chain,
    source: str,
    layers: Sequence[HeadLayer] | None,
    is_pickled: bool,
    assumed: list[str],
) -> list[dict[str, Any]]:
    """Puts the head's tensors under this network's names.

    Args:
        found: The network; its tensors are added to.
        head: The head to take.
        source: Name of the checkpoint in errors.
        layers: The layers before the classifier, as `Xception` takes them; none where nobody names them.
        is_pickled: Whether a pickled module says what the classifier computes.
        assumed: Sentences about what the file does not say; some may be added.

    Returns:
        The layers before the classifier.

    Raises:
        CheckpointError: The file has layers before the classifier and does not say which, or others than given.
    """
    classifier, relative = head.classifier, head.classifier.name.removeprefix(found.prefix)
    if layers is None and not head.is_hidden:
        layers = []
        if head.name != relative and re.search(r'\.[1-9]\d*$', relative):
            assumed.append(f'dropout before {relative}, where the file has no tensors')
    if layers is None:
        convolutions = any(layer.is_convolution for layer in head.layers[:-1])
        condition = ', if its convolutions follow the pooling' * convolutions
        raise CheckpointError(
            f'{source}: the head {head.name} has layers before its classifier, and the file names neither activations '
            f'nor dropout. Pass all of them{condition}, such as head_layers={_described(head.layers[:-1])}; '
            f'num_classes=0 takes the backbone without any head.'
        )
    taken = [dict(layer) for layer in layers]
    if all(set(layer) == {'drop'} for layer in taken):
        taken = []  # the argument drop_rate stands for it
    named = [(name, layer) for name, layer in zip(head_layer_names(taken), taken) if {'fc', 'bn'} & set(layer)]
    for (name, argument), layer in zip(named, head.layers[:-1], strict=True):
        if layer.kind == 'fc' and 'bias' not in layer.tensors:
            argument['bias'] = False
        found.tensors |= {f'head.fc_layers.{name}.{kind}': tensor for kind, tensor in layer.tensors.items()}
    weight = classifier.tensors['weight']
    if 'bias' not in classifier.tensors and not is_pickled:
        assumed.append(
            f'{classifier.name}, which has no bias, is a linear layer (the head of ArcFace or CosFace normalizes '
            f'features and weights as well: its cosines are torch.nn.functional.linear(torch.nn.functional.normalize('
            f'model.forward_head(model.forward_features(x), pre_logits=True)), torch.nn.functional.normalize('
            f'model.head.fc.weight)))'
        )
    if classifier.is_convolution and not is_pickled:
        assumed.append(f'the convolution {classifier.name} after the pooling, or before one of averages')
    bias = torch.zeros(weight.shape[0], dtype=weight.dtype)
    found.tensors |= {f'head.fc.{kind}': tensor for kind, tensor in {'bias': bias, **classifier.tensors}.items()}
    return taken
