"""The head of a file of another layout: which of its layers are the classifier, and the layers before it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch

from ..errors import CheckpointError, listed
from ..head import HeadLayer, head_layer_names
from .checkpoint_files import StateDict
from .lineages import Recognised, quoted, takes_features

MAX_LAYERS = 500  # beside the backbone, among which a head is searched
OFF_THE_PATH = 'adjust_channel'  # of DeepfakeBench: a projection that its plain detector does not compute with
NO_HEAD = 'num_classes=0 takes the backbone without any head'


KINDS = ('fc', 'bn')  # layers of a head that have tensors, as `head_layers` calls them


@dataclass(eq=False)
class Layer:
    """A layer beside the backbone that a head can have. A head is a list of them; the last is the classifier.

    Attributes:
        name: Name in the file.
        kind: One of `KINDS`.
        tensors: Its tensors, as a head here has them: matrices [out, in], vectors [features].
        is_convolution: Whether it is a 1x1 convolution in the file.
        group: Name of the Sequential that holds it, or of the layer; without the network's prefix.
    """

    name: str
    kind: str
    tensors: StateDict
    is_convolution: bool = False
    group: str = ''

    @property
    def takes(self) -> int:
        return self.tensors['weight'].shape[-1]

    @property
    def returns(self) -> int:
        return self.tensors['weight'].shape[0]


def _is_attention(head: Sequence[Layer], features: int) -> bool:
    """Whether layers return all features by way of fewer, as squeeze and excitation does."""
    narrow = any(layer.takes != features for layer in head)
    return narrow and head[-1].kind == 'fc' and head[-1].returns == features


def _shown(head: Sequence[Layer]) -> str:
    widths = (head[0].takes, *(layer.returns for layer in head if layer.kind == 'fc'))
    return f'{head[-1].group} ({" -> ".join(map(str, widths))} features)'


def _layer(name: str, tensors: StateDict) -> Layer | None:
    """A linear layer, a 1x1 convolution or a normalization; None for any other."""
    weight = tensors.get('weight')
    if weight is None:
        return None
    if tensors.keys() <= {'weight', 'bias'} and weight.dim() in (2, 4) and weight.shape[2:].numel() == 1:
        return Layer(name, 'fc', {**tensors, 'weight': weight.flatten(1)}, weight.dim() == 4)
    if tensors.keys() == {'weight', 'bias', 'running_mean', 'running_var'} and weight.dim() == 1:
        return Layer(name, 'bn', tensors)
    return None


def _paths(found: Recognised, features: int) -> list[list[Layer]]:
    """Layers beside the backbone that follow each other by their widths, in the order of the file."""
    groups: dict[str, list[Layer | None]] = {}
    for name, tensors in islice(found.beside.items(), MAX_LAYERS):
        parent, _, place = name.rpartition('.')
        groups.setdefault(parent if parent and place.isdigit() else name, []).append(_layer(name, tensors))
    paths: list[list[Layer]] = []
    for group, members in groups.items():
        layers = [layer for layer in members if layer]
        is_chain = None not in members and all(before.returns == after.takes for before, after in pairwise(layers))
        for chain in [layers] if is_chain else [[layer] for layer in layers]:
            for layer in chain:
                layer.group = (group if is_chain else layer.name).removeprefix(found.prefix)
            before = next((path for path in reversed(paths) if path[-1].returns == chain[0].takes), None)
            if before is None or _is_attention(before, features):
                paths.append(chain)
            else:
                before += chain
    return paths


def _heads(paths: Sequence[list[Layer]], features: int) -> list[list[Layer]]:
    """Paths from the features to a classifier."""
    return [
        path
        for path in paths
        if path[-1].kind == 'fc' and path[0].takes == features and not _is_attention(path, features)
    ]


def find_head(
    found: Recognised,
    classifier: str | None = None,
    head_layers: Sequence[HeadLayer] = (),
    global_pool: str = 'avg',
    num_classes: int | None = None,
) -> list[Layer] | None:
    """The head to take of those beside the backbone; None if there is none, or if the network has its own.

    What is not taken is left out of `found`.

    Args:
        found: The network.
        classifier: Name of the layer, the Sequential or the tensor to take.
        head_layers: The layers before the classifier, if the caller names them.
        global_pool: The pooling before the head; some double the features.
        num_classes: Number of classes that is asked for; None for the file's. Another one makes the head a new one.

    Raises:
        CheckpointError: There are several, or other layers that the network may compute with.
    """
    features = found.num_features * (2 if 'cat' in global_pool else 1)
    if any(name.startswith('head.') for name in found.tensors):
        own = {f'{prefix}head.fc{kind}' for prefix in ('', found.prefix) for kind in ('', '.weight', '.bias')}
        if classifier in own or (classifier is None and not found.beside):
            found.drop(found.beside, "not the classifier 'head.fc'")
            return None
        if classifier is None:
            raise CheckpointError(
                f'{found.source} holds a classifier, head.fc, and other layers beside the network: '
                f"{quoted(found.beside)}. Choose with classifier='head.fc' or another name, or none with num_classes=0."
            )
    if classifier is None:
        paths = _without_projections(found, _paths(found, features), features)
        head = _only(found, paths, features)
    else:
        _name_matrices(found, classifier, features)
        paths = _paths(found, features)
        head = _chosen(found, paths, classifier, features)
    if head and head_layers and num_classes in (None, head[-1].returns):
        head = _assigned(found, head, [layer for path in paths for layer in path], head_layers, features)
    others = [name for name in found.beside if head is None or name not in {layer.name for layer in head}]
    if others and classifier is None:
        raise _no_place(found, paths, head, others)
    if head:
        reason = f'not the classifier {head[-1].group!r}'
        found.drop(others, f'{reason}: if the network computes with them, this is another one')
        found.drop_own_head(reason)
    return head


def _without_projections(found: Recognised, paths: list[list[Layer]], features: int) -> list[list[Layer]]:
    """The paths without projections beside another classifier, which are left out."""
    aside = [path for path in paths if OFF_THE_PATH in path[0].name.split('.')]
    if all(path in aside for path in _heads(paths, features)):
        return paths
    found.drop([layer.name for path in aside for layer in path], 'a projection that the classifier does not take')
    return [path for path in paths if path not in aside]


def _only(found: Recognised, paths: Sequence[list[Layer]], features: int) -> list[Layer] | None:
    heads = _heads(paths, features)
    names = [head[-1].group for head in heads]
    if len(heads) > 1:
        raise CheckpointError(
            f'{found.source} holds {len(heads)} classifiers: {quoted(names)}. Choose one with classifier={names[0]!r}, '
            f'or none with num_classes=0. A network that computes with several is another one.'
        )
    if not heads and (doubled := _heads(paths, 2 * features)):
        raise _two_poolings(found, doubled[0])
    return heads[0] if heads else None


def drop_heads(found: Recognised, reason: str) -> None:
    """Leaves out all layers beside the backbone. The reason is that for heads: other layers may stand anywhere."""
    features = found.num_features
    paths = _paths(found, features)
    known = {layer.name for width in (features, 2 * features) for head in _heads(paths, width) for layer in head}
    others = [name for name in found.beside if name not in known]
    found.drop(others, f'{reason}; where the backbone computes with them, its features are others')
    found.drop(found.beside, reason)
    found.drop_own_head(reason)


def _two_poolings(found: Recognised, head: Sequence[Layer]) -> CheckpointError:
    first = next(i for i, layer in enumerate(head) if layer.kind == 'fc')
    names = [f'{layer.name}.{kind}' for layer in head[:first] for kind in layer.tensors]
    return CheckpointError(
        f'{found.source}: {head[-1].group} takes {head[0].takes} features, of two poolings or of two networks. Pass '
        f"global_pool='catavgmax' if the averages come first, as in timm. If the maxima come first, as in fastai, "
        f'exchange them in the state dict before: for name in {[*names, f"{head[first].name}.weight"]}: '
        f'state[name] = state[name].roll({found.num_features}, min(1, state[name].dim() - 1)). {NO_HEAD}.'
    )


def _chosen(found: Recognised, paths: Sequence[list[Layer]], classifier: str, features: int) -> list[Layer]:
    """The head that ends with the layer, the Sequential or the tensor of a name."""
    ends: dict[str, list[Layer]] = {}
    for path in paths:
        for i, layer in enumerate(path, start=1):
            names = [layer.name, *(f'{layer.name}.{kind}' for kind in layer.tensors)]
            ends |= dict.fromkeys([*names, layer.group, f'{found.prefix}{layer.group}'], path[:i])
    exact = [ends[name] for name in (f'{found.prefix}{classifier}', classifier) if name in ends]
    matches = exact[:1] or [*{end[-1]: end for name, end in ends.items() if _ends_with(name, classifier)}.values()]
    if len(matches) != 1:
        own = ['head.fc'] * any(name.startswith('head.') for name in found.tensors)
        names = [*own, *dict.fromkeys(end[-1].group for end in ends.values())]
        raise CheckpointError(f'{found.source} has no classifier {classifier!r}. It has: {quoted(names)}.')
    head = matches[0]
    if head[0].takes == 2 * features:
        raise _two_poolings(found, head)
    if head[-1].kind != 'fc' or head[0].takes != features:
        raise CheckpointError(
            f'{found.source}: {classifier} is no chain of linear layers and normalizations on {features} features. '
            f'{NO_HEAD}.'
        )
    return head


def _ends_with(name: str, part: str) -> bool:
    return f'.{name}'.endswith(f'.{part}')


def _name_matrices(found: Recognised, classifier: str, features: int) -> None:
    """Makes a matrix of the classifier's name, [classes, features] or [features, classes], the weight of a layer."""
    for layer, tensors in list(found.beside.items()):
        for kind, tensor in list(tensors.items()):
            path = f'{layer}.{kind}'.lstrip('.')
            if kind != 'weight' and tensor.dim() == 2 and _ends_with(path, classifier):
                matrix = tensors.pop(kind)
                found.beside[path] = {'weight': matrix if matrix.shape[1] == features else matrix.T.contiguous()}


def _no_place(
    found: Recognised, paths: Sequence[list[Layer]], head: list[Layer] | None, others: Sequence[str]
) -> CheckpointError:
    """The error for layers that the network may compute with."""
    apart = [path for path in paths if path[0].name in others]
    known = {layer.name for path in apart for layer in path}
    unknown = {
        f'{name}.{kind}'.lstrip('.'): tensor
        for name in sorted(others)
        if name not in known
        for kind, tensor in found.beside[name].items()
    }
    is_attention = any(_is_attention(path, found.num_features) for path in apart)
    ways = f', and classifier={head[-1].group!r} that head alone' if head else ''
    for name, tensor in () if head else unknown.items():
        if tensor.dim() == 2 and takes_features(tensor, found.num_features):
            ways = f', and classifier={name!r} a linear layer of this matrix'
    if head and not unknown and not is_attention:
        before = [layer for path in paths for layer in path if layer is not head[-1]]
        ways += f'. If all are layers of one head, name them in their order, such as head_layers={_described(before)}'
    shown = [*map(_shown, apart), *(f'{name} {list(tensor.shape)}' for name, tensor in unknown.items())]
    return CheckpointError(
        f'{found.source} holds tensors that this network has no place for, and may compute with them: '
        f'{listed(shown)}{", as attention does" if is_attention else ""}. Without them it is another function: '
        f'{NO_HEAD}{ways}.'
    )


def _assigned(
    found: Recognised, head: list[Layer], layers: Sequence[Layer], head_layers: Sequence[HeadLayer], features: int
) -> list[Layer]:
    """The file's layers in the order in which the caller names them; those of one Sequential are in theirs."""
    width = features
    taken: list[Layer] = []
    for wanted in head_layers:
        kind = next((kind for kind in KINDS if kind in wanted), None)
        returns = wanted.get('fc', width)
        fits = [layer for layer in layers if (layer.kind, layer.takes, layer.returns) == (kind, width, returns)]
        fits = [layer for layer in fits if layer not in [*taken, head[-1]]]
        own = [layer for layer in fits if layer.group == head[-1].group]
        if not own and len(fits) > 1:
            raise CheckpointError(
                f'{found.source}: {quoted(layer.name for layer in fits)} could stand in {head[-1].group}. Remove the '
                f'tensors of those that do not: del state[...].'
            )
        taken += (own or fits)[:1]
        width = width if not kind else returns if fits else 0
    if width != head[-1].takes or not {layer for layer in head if layer.group == head[-1].group} <= {*taken, head[-1]}:
        raise CheckpointError(
            f'{found.source}: {head[-1].group} has other layers than head_layers='
            f'{[dict(layer) for layer in head_layers]}: rather {_described(head[:-1])}, of which only fc and bn are in '
            f'the file. {NO_HEAD}.'
        )
    return [*taken, head[-1]]


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
    found: Recognised, head: Sequence[Layer], layers: Sequence[HeadLayer] | None, is_pickled: bool
) -> list[dict[str, Any]]:
    """Puts the head's tensors under this network's names.

    Args:
        found: The network; its tensors and assumptions are added to.
        head: The head to take.
        layers: The layers before the classifier, as `Xception` takes them; None where nobody names them.
        is_pickled: Whether a pickled module says what the classifier computes.

    Returns:
        The layers before the classifier.

    Raises:
        CheckpointError: The file has layers before the classifier and does not say which, or others than given.
    """
    *before, classifier = head
    relative = classifier.name.removeprefix(found.prefix)
    if layers is None and not before:
        layers = []
        if classifier.group != relative and re.search(r'\.[1-9]\d*$', relative):
            found.assumed.append(f'dropout before {relative}, where the file has no tensors')
    if layers is None:
        condition = ', if its convolutions follow the pooling' * any(layer.is_convolution for layer in before)
        raise CheckpointError(
            f'{found.source}: the head {classifier.group} has layers before its classifier, and the file names neither '
            f'activations nor dropout between them. Pass all of them{condition}, such as head_layers='
            f'{_described(before)}; {NO_HEAD}.'
        )
    taken = [dict(layer) for layer in layers]
    if all(set(layer) == {'drop'} for layer in taken):
        taken = []  # the argument drop_rate stands for it
    named = [(name, layer) for name, layer in zip(head_layer_names(taken), taken) if {'fc', 'bn'} & set(layer)]
    for (name, argument), layer in zip(named, before, strict=True):
        if layer.kind == 'fc' and 'bias' not in layer.tensors:
            argument['bias'] = False
        found.tensors |= {f'head.fc_layers.{name}.{kind}': tensor for kind, tensor in layer.tensors.items()}
    weight = classifier.tensors['weight']
    if 'bias' not in classifier.tensors and not is_pickled:
        found.assumed.append(
            f'{classifier.name}, which has no bias, is a linear layer (the head of ArcFace or CosFace normalizes '
            f'features and weights as well: its cosines are torch.nn.functional.linear(torch.nn.functional.normalize('
            f'model.forward_head(model.forward_features(x), pre_logits=True)), torch.nn.functional.normalize('
            f'model.head.fc.weight)))'
        )
    if classifier.is_convolution and not is_pickled:
        found.assumed.append(f'the convolution {classifier.name} after the pooling, or before one of averages')
    bias = torch.zeros(weight.shape[0], dtype=weight.dtype)
    found.tensors |= {f'head.fc.{kind}': tensor for kind, tensor in {'bias': bias, **classifier.tensors}.items()}
    return taken
