"""Compares the modules that a pickle names with those of this network, one by one."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from ..layers import MaxPool2dSame
from ..network import Xception
from ..topology import MODULES
from .heads import KNOWN_LAYERS
from .layouts import LAYOUTS, LEFT_OUT, LEGACY_NUMERICS, listed
from .pickles import Inert

Modules = Mapping[str, Inert]


def _unweighted() -> Iterator[str]:
    """Names of this network's activations and poolings."""
    for torch, number, convs, strided in MODULES:
        base = torch if number == 1 else f'{torch}.stack'
        yield from (f'{base}.act{i}' for i in range(2 if number == 2 else 1, convs + 1))
        if strided:
            yield f'{base}.pool'


UNWEIGHTED = {*_unweighted()}
PLACES = ('stem.act1', 'stem.act2', 'exit_flow.1.stack.act1', 'exit_flow.1.stack.act2')
# Activations of older ports that are modules in some, and calls of functions in others.
NAMED_ACTS = {f'{name}{i}': ours for name in ('act', 'relu') for i, ours in enumerate(PLACES, start=1)}
EQUAL = {'SyncBatchNorm': 'BatchNorm2d', 'NonDynamicallyQuantizableLinear': 'Linear'}
ACTS: dict[str, str] = {kind: layer['act'] for kind, layer in KNOWN_LAYERS.items() if 'act' in layer}
FINAL = {'Softmax': 'softmax', 'LogSoftmax': 'log_softmax', 'Sigmoid': 'sigmoid'}
# Without an effect in evaluation, or on pooled features.
IDLE = re.compile(
    r'(.*\.)?(\w*Dropout\w*|DropPath|DropBlock2d|StochasticDepth|Identity|Flatten|\w*Loss)|torchmetrics\..*'
)
FOLDED = re.compile(r'torch\.nn\.utils\.(prune|weight_norm|spectral_norm)\.')  # hooks of folded tensors
ROOTS = ('torch.nn.modules.', 'timm.', 'xception_hub.')
UNCOMPARED = ('training', 'inplace', 'momentum', 'num_features', 'in_channels', 'out_channels', 'bias', 'p',
              'drop_prob', 'grad_checkpointing')  # fmt: skip


def settings_of(
    modules: Modules, prefix: str, layout: str, source: str, arguments: Mapping[str, Any] | None, with_head: bool
) -> tuple[dict[str, Any], str]:
    """Settings of a pickled network.

    Args:
        modules: Path in the file -> module.
        prefix: Prefix of the network's names.
        layout: One of `LAYOUTS`.
        source: Name of the checkpoint in errors.
        arguments: Arguments that a network of this project recorded; None for one of an older port.
        with_head: Whether what follows the backbone is taken too.

    Returns:
        Arguments of the network, and the activation after its logits: 'linear' for none.

    Raises:
        CheckpointError: A module computes in a way that this network has no argument for.
    """
    root = min((path for path in modules if not path or prefix.startswith(f'{path}.')), key=len, default='')
    modules = {path: modules[path] for path in modules if not root or f'{path}.'.startswith(f'{root}.')}
    inside = {path.removeprefix(prefix): module for path, module in modules.items() if path.startswith(prefix)}
    args = dict(arguments) if arguments is not None else _numerics_of(inside, layout)
    try:
        reference = dict(Xception(**args, device='meta').named_modules())
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f'{source}: its modules name arguments that the network does not take ({e}).') from e
    slots = _slots(layout, reference)
    slots = {path: ours for path, ours in slots.items() if path in inside or path not in NAMED_ACTS}
    odd = []
    for path, ours in slots.items():
        expected = reference[ours]
        if arguments is None and isinstance(expected, MaxPool2dSame):
            expected = nn.MaxPool2d(3, 2, 1)
        odd += [f'{path}: {text}' for text in _differences(inside.get(path), expected)]
    if layout == 'sequential' and _kind(modules.get(prefix[:-1])) == 'Sequential':
        odd.append('a Sequential without an activation before its first block')
    beside = _Beside(modules, prefix, slots, args.get('act_layer', 'relu'))
    for path, module in modules.items():
        beside.read(path, module, with_head)
    if args.get('act_layer', 'relu') != 'relu' and not {*PLACES} <= {*slots.values()}:
        beside.unsure.append(f'{args["act_layer"]} in modules, and functions in other places')
    if odd or beside.odd:
        raise CheckpointError(
            f'{source} computes in a way that this network has no arguments for: {listed(odd + beside.odd)}. Only the '
            f'program that saved it computes the same.'
        )
    pools = sorted({*beside.pools})
    unsure = beside.unsure + (pools if with_head and len(pools) > 1 else [])
    if unsure:
        raise CheckpointError(
            f'{source} may compute in another way than this network: {listed(unsure)}. If you '
            f'know that it does not, torch.save(model.state_dict(), ...) in the program that saved it gives tensors '
            f'that load with the arguments you pass, such as act_layer and global_pool.'
        )
    if arguments is None and len(pools) == 1:
        args['global_pool'] = pools.pop()
    return args, beside.final


def _numerics_of(modules: Modules, layout: str) -> dict[str, Any]:
    """Numerics of an older port, from one module of each kind; that all others have the same is checked later."""
    names = {ours: path for path, ours in _slots(layout, None).items() if path in modules}
    eps, padding = (
        modules[names[ours]].state.get(key) for ours, key in (('stem.bn1', 'eps'), ('stem.conv1', 'padding'))
    )
    acts = [ACTS.get(_kind(modules[path])) for ours, path in names.items() if '.act' in ours]
    return {
        **LEGACY_NUMERICS,
        'bn_eps': eps if isinstance(eps, float) and eps > 0 else LEGACY_NUMERICS['bn_eps'],
        'stem_padding': int(padding in (1, (1, 1))),
        'act_layer': next((act for act in acts if act), 'relu'),
    }


def _slots(layout: str, reference: Mapping[str, nn.Module] | None) -> dict[str, str]:
    """Path of each module that computes -> its name in this network."""
    if layout == 'xception_hub':
        leaves = {name for name, module in (reference or {}).items() if not [*module.children()]}
        return {name: name for name in leaves if name != 'head.fc'}
    slots = {**LAYOUTS[layout], **(NAMED_ACTS if layout == 'legacy' else {})}
    for path, ours in LAYOUTS[layout].items():
        if not (match := re.fullmatch(r'(stem|.*\.stack)\.bn(\d)', ours)):
            continue
        base, number = match[1], int(match[2])
        parent, dot, place = path.rpartition('.')
        if layout == 'pytorchcv':
            slots[f'{parent}.activ'] = f'{base}.act{number}'
            slots[f'{parent.rpartition(".")[0]}.pool'] = f'{base}.pool'
        if not place.isdigit():
            continue
        following = f'{base}.act{number + bool(parent)}'
        slots[f'{parent}{dot}{int(place) + 1}'] = following if following in UNWEIGHTED else f'{base}.pool'
        if place == '2':
            slots[f'{parent}.0'] = f'{base}.act1'
    if layout == 'pytorchcv':
        del slots['features.final_block.conv1.activ']
        slots |= {'features.final_block.conv2.activ': PLACES[2], 'features.final_block.activ': PLACES[3]}
    return {path: ours for path, ours in slots.items() if ours in UNWEIGHTED or path in LAYOUTS[layout]}


def _differences(module: Inert | None, expected: nn.Module) -> Iterator[str]:
    """What a pickled module does in another way than the expected one."""
    if module is None:
        yield 'missing'
    elif isinstance(expected, (nn.Identity, nn.Dropout)) and IDLE.fullmatch(module.kind):
        return
    elif _kind(module) != type(expected).__name__ or not module.kind.startswith(ROOTS):
        yield module.kind
    else:
        for key, value in vars(expected).items():
            if key.startswith('_') or key in UNCOMPARED:
                continue
            found = module.state.get(key, value)
            if key == 'padding' and isinstance(found, str):  # 'same' or 'valid', which torch keeps as numbers too
                found = tuple(module.state.get('_reversed_padding_repeated_twice', ())[::2])
            if _pair(found) != _pair(value):
                yield f'{key}={found!r:.40}'
        if getattr(expected, 'inplace', None) is False and module.state.get('inplace'):
            yield 'inplace=True, which changes what the shortcut takes'


class _Beside:
    """What the modules say that have no place in the backbone.

    Attributes:
        odd: Modules that certainly compute something else.
        unsure: Modules of which no pickle says what they compute.
        pools: Kinds of global pooling.
        final: Activation after the logits.
    """

    def __init__(self, modules: Modules, prefix: str, slots: Mapping[str, str], act: str) -> None:
        self.modules, self.prefix, self.act = modules, prefix, act
        self.slots = {f'{prefix}{path}' for path in slots}
        parents = {path[: dot.start()] for path in slots for dot in re.finditer(r'\.', path)} - {'features', 'head'}
        self.blocks = tuple(f'{prefix}{parent}.' for parent in parents)
        linear = [i for i, module in enumerate(modules.values()) if _kind(module) == 'Linear']
        self.last = {*[*modules][max(linear, default=-1) + 1 :]}
        self.odd: list[str] = []
        self.unsure: list[str] = []
        self.pools: list[str] = []
        self.final = 'linear'
        self.passed = '\0'

    def read(self, path: str, module: Inert, with_head: bool) -> None:
        state, kind, shown = module.state, _kind(module), f'{path}: {module.kind}'
        for hooks in ('_forward_hooks', '_forward_pre_hooks'):
            for hook in (state.get(hooks) or {}).values():
                name = getattr(hook, 'kind', type(hook).__name__)
                if not FOLDED.match(name):
                    self.unsure.append(f'{path}: {hooks} {name}')
        if 'forward' in state:
            self.unsure.append(f'{path}: a function forward of its own')
        in_block = path.startswith(self.blocks)
        if path in self.slots or path.startswith(self.passed) or IDLE.fullmatch(module.kind):
            return
        if not in_block and any(re.search(pattern, path, re.IGNORECASE) for pattern in LEFT_OUT):
            return
        pool = _pool_of(module)
        if pool and (not in_block or path.endswith('final_block.pool')):
            self.passed = f'{path}.'
            self.pools.append(pool)
        elif state['_modules']:
            return
        elif in_block:
            in_order = _kind(self.modules.get(path.rpartition('.')[0])) == 'Sequential'
            if in_order or ACTS.get(kind) != self.act:
                self.odd.append(shown)
        elif with_head:
            self.read_head(path, module, shown)

    def read_head(self, path: str, module: Inert, shown: str) -> None:
        kind, parent = _kind(module), path.rpartition('.')[0]
        in_order = _kind(self.modules.get(parent)) == 'Sequential'
        in_chain = in_order and not self.prefix.startswith(
            f'{parent}.' if parent else ''
        )  # whose layers are read later
        function = FINAL.get(kind) or ACTS.get(kind)
        weight = (module.state.get('_parameters') or {}).get('weight')
        if function and (path in self.last or (kind in FINAL and not in_order)):
            if self.final != 'linear' or module.state.get('dim') not in (None, 1, -1):
                self.odd.append(f'{shown}, dim={module.state.get("dim")}')
            elif function != self.act or in_order:
                self.final = function
        elif function:
            self.unsure += [shown] * (not in_chain and function != 'relu')
        elif isinstance(weight, Tensor):
            self.unsure += [shown] * (weight.dim() == 2 and kind != 'Linear')
        elif not module.state.get('_parameters') and not module.state.get('_buffers'):
            self.unsure.append(shown)


def _pool_of(module: Inert) -> str | None:
    """timm's name of a global pooling."""
    kind, state = _kind(module), module.state
    if kind == 'SelectAdaptivePool2d':
        return str(state.get('pool_type', 'avg'))
    if kind in ('AdaptiveAvgPool2d', 'AdaptiveMaxPool2d') and _pair(state.get('output_size')) == (1, 1):
        return kind[8:11].lower()
    return 'avg' if kind == 'AvgPool2d' and (state.get('kernel_size'), state.get('stride')) == (10, 1) else None


def _kind(module: Inert | None) -> str:
    name = module.kind.rpartition('.')[2] if module is not None else ''
    return EQUAL.get(name, name)


def _pair(value: Any) -> Any:
    return (value, value) if type(value) is int else tuple(value) if isinstance(value, list) else value
