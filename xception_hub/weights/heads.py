"""The head of a file of another layout: which of its layers are the classifier, and the layers before it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from ..head import HeadLayer, head_layer_names
from .files import StateDict
from .layouts import Recognised, listed, quoted

FEATURES = 2048  # features that a head takes
# Class of a layer without tensors in a pickled module -> the layer here.
KNOWN_LAYERS: dict[str, HeadLayer] = {
    'ReLU': {'act': 'relu'},
    'ReLU6': {'act': 'relu6'},
    'LeakyReLU': {'act': 'leaky_relu'},
    'ELU': {'act': 'elu'},
    'GELU': {'act': 'gelu'},
    'SiLU': {'act': 'silu'},
    'Tanh': {'act': 'tanh'},
    'Sigmoid': {'act': 'sigmoid'},
    'Hardswish': {'act': 'hard_swish'},
    'Mish': {'act': 'mish'},
    'Dropout': {'drop': 0.0},
    'Identity': {'drop': 0.0},
}


@dataclass
class Chain:
    """One Sequential, or one single layer, of a file.

    Attributes:
        name: Name of the Sequential or the layer, without the network's prefix.
        layers: Place in the Sequential -> tensors of the layer there. Layers without tensors have no place.
        paths: Names of the tensors in the file.
    """

    name: str
    layers: dict[int, StateDict]
    paths: list[str]

    @property
    def classifier(self) -> StateDict:
        return self.layers[max(self.layers)]

    @property
    def is_head(self) -> bool:
        """Whether the layers are linear ones and normalizations that fit each other, from features to classes."""
        width = FEATURES
        for place in sorted(self.layers):
            tensors = self.layers[place]
            if _kind(tensors) is None or tensors['weight'].shape[-1] != width:
                return False
            width = tensors['weight'].shape[0]
        return _kind(self.classifier) == 'fc'

    def described(self) -> list[str]:
        """The layers as `head_layers` has them, with a guess for those that the file does not name."""
        layers: list[dict[str, Any]] = []
        for place in range(max(self.layers)):
            tensors = self.layers.get(place)
            kind = tensors and _kind(tensors)
            if kind == 'fc':
                layers.append({'fc': self.layers[place]['weight'].shape[0]})
            elif kind == 'bn':
                layers.append({'bn': 1e-5})
            else:
                layers.append({'act': 'relu'} if layers and 'act' not in layers[-1] else {'drop': 0.5})
        return [str(layer) for layer in layers]

    def layers_of(self, modules: Mapping[str, Any], prefix: str) -> list[HeadLayer] | None:
        """The layers before the classifier, from the classes of a pickled module; None if they are not all known."""
        layers: list[HeadLayer] = []
        for place in range(max(self.layers)):
            path = f'{self.name}.{place}'
            module = modules.get(f'{prefix}{path}') or modules.get(path)
            if module is None:
                return None
            kind = module.kind.rpartition('.')[2]
            if kind == 'Linear':
                layers.append({'fc': self.layers[place]['weight'].shape[0]})
            elif kind == 'BatchNorm1d':
                layers.append({'bn': module.state['eps']})
            elif kind in KNOWN_LAYERS:
                layers.append(KNOWN_LAYERS[kind])
            else:
                return None
        return layers


def _kind(tensors: StateDict) -> str | None:
    weight = tensors.get('weight')
    if weight is None:
        return None
    if weight.dim() == 2 and set(tensors) <= {'weight', 'bias'}:
        return 'fc'
    return 'bn' if weight.dim() == 1 and {'bias', 'running_mean', 'running_var'} <= set(tensors) else None


def chains_of(found: Recognised) -> dict[str, Chain]:
    """The heads beside the backbone, by name."""
    chains: dict[str, Chain] = {}
    for layer, tensors in found.heads.items():
        parent, _, place = layer.removeprefix(found.prefix).rpartition('.')
        name, index = (parent, int(place)) if parent and place.isdigit() else (layer.removeprefix(found.prefix), 0)
        chain = chains.setdefault(name, Chain(name, {}, []))
        chain.layers[index] = tensors
        chain.paths += [f'{layer}.{kind}' for kind in tensors]
    return chains


def find_head(found: Recognised, source: str, classifier: str | None = None) -> Chain | None:
    """The head to take; None if there is none.

    Raises:
        CheckpointError: There are several, or others that the network may compute with.
    """
    chains = chains_of(found)
    own = {name: tensor for name, tensor in found.tensors.items() if name.startswith('head.')}
    if own and chains and classifier is None:
        raise CheckpointError(
            f'{source} holds a classifier, head.fc, and other layers beside the network: {quoted(chains)}. '
            f"Choose with classifier='head.fc' or another name, or none with num_classes=0."
        )
    if classifier is not None:
        wanted = {name for name in chains if classifier in (name, f'{found.prefix}{name}')}
        wanted |= {name for name in chains if classifier.rpartition('.')[0] == name and name}
        if not wanted:
            raise CheckpointError(f'{source} has no classifier {classifier!r}. It has: {quoted(chains)}.')
        chain = chains[wanted.pop()]
        if not chain.is_head:
            raise CheckpointError(
                f'{source}: {classifier} is no chain of linear layers and normalizations on {FEATURES} features. '
                f'num_classes=0 takes the backbone without any head.'
            )
    else:
        heads = [chain for chain in chains.values() if chain.is_head]
        if len(heads) > 1:
            raise CheckpointError(
                f'{source} holds {len(heads)} classifiers: {quoted(chain.name for chain in heads)}. Choose one with '
                f'classifier={heads[0].name!r}, or none with num_classes=0.'
            )
        others = [path for chain in chains.values() if not chain.is_head for path in chain.paths]
        if others:
            ways = f'; classifier={heads[0].name!r} takes that head alone' if heads else ''
            raise CheckpointError(
                f'{source} holds tensors that this network has no place for, and may compute with them: '
                f'{listed(sorted(others))}. num_classes=0 takes the backbone without any head{ways}.'
            )
        if not heads:
            return None
        chain = heads[0]
    for name in own:
        found.left_out[f'{found.prefix}{name}'] = f'not the classifier {chain.name!r}'
        del found.tensors[name]
    for name, other in chains.items():
        if name != chain.name:
            found.left_out.update(dict.fromkeys(other.paths, f'not the classifier {chain.name!r}'))
    return chain


def take_head(
    found: Recognised,
    chain: Chain,
    source: str,
    head_layers: Sequence[HeadLayer],
    modules: Mapping[str, Any],
    assumed: list[str],
) -> list[dict[str, Any]]:
    """Puts the head's tensors under this network's names.

    Args:
        found: The network; its tensors are added to.
        chain: The head to take.
        source: Name of the checkpoint in errors.
        head_layers: The layers before the classifier, as `Xception` takes them; none for what the file tells.
        modules: Path -> pickled module, from which the file tells its layers.
        assumed: Sentences about what the file does not tell; one may be added.

    Returns:
        The layers before the classifier.

    Raises:
        CheckpointError: The file has layers before the classifier and does not say which, or others than given.
    """
    with_tensors = [chain.layers[place] for place in sorted(chain.layers)][:-1]
    layers: Iterable[HeadLayer] | None = head_layers or chain.layers_of(modules, found.prefix)
    if layers is None and not with_tensors:
        layers = []
        assumed.append(f'dropout before {chain.name}.{max(chain.layers)}, where the file has no tensors')
    if layers is None:
        raise CheckpointError(
            f'{source}: {chain.name} has layers before the classifier, and the file names neither activations nor '
            f'dropout. Pass all of them, such as head_layers=[{", ".join(chain.described())}]; num_classes=0 takes the '
            f'backbone without any head.'
        )
    taken = [dict(layer) for layer in layers]
    if all(set(layer) == {'drop'} for layer in taken):
        taken = []  # the argument drop_rate stands for it
    named = [(name, layer) for name, layer in zip(head_layer_names(taken), taken) if {'fc', 'bn'} & set(layer)]
    fits = len(named) == len(with_tensors) and all(
        _kind(tensors) in layer and layer.get('fc') in (None, tensors['weight'].shape[0])
        for tensors, (_, layer) in zip(with_tensors, named)
    )
    if not fits:
        raise CheckpointError(
            f'{source}: {chain.name} has other layers than head_layers={taken}: rather '
            f'[{", ".join(chain.described())}], of which only fc and bn are in the file.'
        )
    for tensors, (name, layer) in zip(with_tensors, named):
        if 'fc' in layer and 'bias' not in tensors:
            layer['bias'] = False
        found.tensors.update(_under(f'head.fc_layers.{name}', tensors))
    bias = torch.zeros(chain.classifier['weight'].shape[0], dtype=chain.classifier['weight'].dtype)
    found.tensors.update(_under('head.fc', {'bias': bias, **chain.classifier}))
    return taken


def _under(name: str, tensors: StateDict) -> StateDict:
    return {f'{name}.{kind}': tensor for kind, tensor in tensors.items() if kind != 'num_batches_tracked'}
