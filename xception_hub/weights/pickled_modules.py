"""Compares the modules that a pickle names with those of this network, one by one."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..errors import CheckpointError, listed
from ..head import HeadLayer
from ..layers import MaxPool2dSame
from ..network import GLOBAL_POOLS, Xception
from .heads import Layer
from .lineages import LAYOUTS, LEFT_OUT, LEGACY_NUMERICS, Recognised
from .pickles import Inert

Modules = Mapping[str, Inert]


PLACES = ('stem.act1', 'stem.act2', 'exit_flow.1.stack.act1', 'exit_flow.1.stack.act2')
# Activations of older ports that are modules in some, and calls of functions in others.
NAMED_ACTS = {f'{name}{i}': ours for name in ('act', 'relu') for i, ours in enumerate(PLACES, start=1)}
EQUAL = {'SyncBatchNorm': 'BatchNorm2d', 'NonDynamicallyQuantizableLinear': 'Linear'}
TENSORS = {'Linear': 'fc', 'Conv2d': 'fc', 'BatchNorm1d': 'bn', 'BatchNorm2d': 'bn'}  # class -> layer of a head
NAMES = ('relu', 'relu6', 'leaky_relu', 'elu', 'gelu', 'silu', 'tanh', 'sigmoid', 'hard_swish', 'mish')
ACTS = {kind: name for name in NAMES for kind in vars(nn) if kind.lower() == name.replace('_', '')}  # class -> name
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
    found: Recognised, modules: Modules, arguments: Mapping[str, Any] | None, with_head: bool
) -> tuple[dict[str, Any], str]:
    """Settings of a pickled network.

    Args:
        found: The network.
        modules: Path in the file -> module.
        arguments: Arguments that a network of this project recorded; None for one of an older port.
        with_head: Whether what follows the backbone is taken too.

    Returns:
        Arguments of the network, and the activation after its logits: 'linear' for none.

    Raises:
        CheckpointError: A module computes in a way that this network has no argument for.
    """
    prefix, layout, source = found.prefix, found.layout, found.source
    root = min((path for path in modules if not path or prefix.startswith(f'{path}.')), key=len, default='')
    modules = {path: modules[path] for path in modules if not root or f'{path}.'.startswith(f'{root}.')}
    inside = {path.removeprefix(prefix): module for path, module in modules.items() if path.startswith(prefix)}
    own = layout == 'xception_hub'
    try:
        args = {**(arguments or {}), **({} if own else _numerics_of(inside, layout))}
        act, reference = args.get('act_layer', 'relu'), dict(Xception(**args, device='meta').named_modules())
        slots = {
            path: ours for path, ours in _slots(layout, reference).items() if path in inside or path not in NAMED_ACTS
        }
        texts: dict[str, list[str]] = {kind: [] for kind in ('odd', 'unsure', 'pools', 'final')}
        for path, ours in slots.items():
            expected = reference[ours]
            if not own and isinstance(expected, MaxPool2dSame):
                expected = nn.MaxPool2d(3, 2, 1)
            texts['odd'] += [f'{prefix}{path}: {text}' for text in _differences(inside.get(path), expected)]
        for kind, text in _beside(modules, prefix, slots, act, with_head):
            texts[kind].append(text)
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        raise CheckpointError(f'{source} has modules without their parts, or with arguments that are none: {e}') from e
    if layout == 'sequential' and _kind(modules.get(prefix[:-1])) == 'Sequential':
        texts['odd'].append('a Sequential without an activation before its first block')
    if act != 'relu' and not own and not {*PLACES} <= {*slots.values()}:
        texts['unsure'].append(f'{act} in modules, and functions in other places')
    pools = {*texts['pools']}
    texts['unsure'] += sorted(pools) if with_head and len(pools) > 1 else []
    texts['odd'] += texts['final'] if len(texts['final']) > 1 else []
    if texts['odd']:
        raise CheckpointError(
            f'{source} computes in a way that this network has no arguments for: {listed(texts["odd"])}. Only the '
            f'program that saved it computes the same.'
        )
    if texts['unsure']:
        raise CheckpointError(
            f'{source} may compute in another way than this network: {listed(texts["unsure"])}. If you know that it '
            f'does not, torch.save(model.state_dict(), ...) in the program that saved it gives tensors that load with '
            f'the arguments you pass, such as act_layer and global_pool.'
        )
    if not own and len(pools) == 1:
        args['global_pool'] = pools.pop()
    return args, (texts['final'] or ['linear'])[0]


def _numerics_of(modules: Modules, layout: str) -> dict[str, Any]:
    """Numerics of an older port, from one module of each kind; that all others have the same is checked later."""
    names = {ours: path for path, ours in LAYOUTS[layout].items()}
    return {
        **LEGACY_NUMERICS,
        'bn_eps': modules[names['stem.bn1']].state['eps'],
        'stem_padding': int(modules[names['stem.conv1']].state['padding'] in (1, (1, 1))),
        'act_layer': next((ACTS[_kind(module)] for module in modules.values() if _kind(module) in ACTS), 'relu'),
    }


def _slots(layout: str, reference: Mapping[str, nn.Module]) -> dict[str, str]:
    """Path of each module that computes -> its name in this network."""
    if layout == 'xception_hub':
        leaves = {name for name, module in reference.items() if not [*module.children()]}
        return {name: name for name in leaves if name != 'head.fc'}
    slots = {**LAYOUTS[layout], **(NAMED_ACTS if layout == 'legacy' else {})}
    for path, ours in LAYOUTS[layout].items():
        if not (match := re.fullmatch(r'(stem|.*\.stack)\.bn(\d)', ours)):
            continue
        base, number = match[1], int(match[2])
        parent, dot, place = path.rpartition('.')
        if 'pytorchcv' in layout:
            slots[f'{parent}.activ'] = f'{base}.act{number}'
            slots[f'{parent.rpartition(".")[0]}.pool'] = f'{base}.pool'
        if not place.isdigit():
            continue
        following = f'{base}.act{number + bool(parent)}'
        slots[f'{parent}{dot}{int(place) + 1}'] = following if following in reference else f'{base}.pool'
        if place == '2':
            slots[f'{parent}.0'] = f'{base}.act1'
    if 'pytorchcv' in layout:
        end = 'final_block' if layout == 'pytorchcv' else '5'
        del slots[f'{end}.conv1.activ']
        slots |= {f'{end}.conv2.activ': PLACES[2], f'{end}.activ': PLACES[3]}
    return {path: ours for path, ours in slots.items() if ours in reference}


def _differences(module: Inert | None, expected: nn.Module, shares: bool = True) -> Iterator[str]:
    """What a pickled module does in another way than the expected one, whose input a shortcut may share."""
    if module is None:
        yield 'missing'
    elif isinstance(expected, (nn.Identity, nn.Dropout)) and IDLE.fullmatch(module.kind):
        return
    elif _kind(module) != type(expected).__name__ or not module.kind.startswith(ROOTS):
        yield module.kind
    else:
        settings = getattr(nn, _kind(module))() if _kind(module) in ACTS else expected  # timm's classes have fewer
        for key, value in vars(settings).items():
            if key.startswith('_') or key in UNCOMPARED:
                continue
            found = module.state.get(key, value)
            if key == 'padding' and isinstance(found, str):  # 'same' or 'valid', which torch keeps as numbers too
                found = tuple(module.state.get('_reversed_padding_repeated_twice', ())[::2])
            if _pair(found) != _pair(value):
                yield f'{key}={found!r:.40}'
        if shares and getattr(expected, 'inplace', None) is False and module.state.get('inplace'):
            yield 'inplace=True, which changes what the shortcut takes'


def _beside(
    modules: Modules, prefix: str, slots: Mapping[str, str], act: str, with_head: bool
) -> Iterator[tuple[str, str]]:
    """What the modules say that have no place in the backbone.

    Yields:
        A kind and a text: 'odd' for what certainly computes something else, 'unsure' for what no pickle says, 'pools'
        for a global pooling, 'final' for an activation after the logits.
    """
    placed = {f'{prefix}{path}' for path in slots}
    parents = {path[: dot.start()] for path in slots for dot in re.finditer(r'\.', path)} - {'head'}
    blocks, passed = tuple(f'{prefix}{parent}.' for parent in parents), '\0'
    linear = [i for i, module in enumerate(modules.values()) if _kind(module) == 'Linear'] or [-1]
    for i, (path, module) in enumerate(modules.items()):
        state, kind, shown = module.state, _kind(module), f'{path}: {module.kind}'
        hooks = [*(state.get('_forward_hooks') or {}).values(), *(state.get('_forward_pre_hooks') or {}).values()]
        names = [getattr(hook, 'kind', type(hook).__name__) for hook in hooks]
        yield from (('unsure', f'{path}: hook {name}') for name in names if not FOLDED.match(name))
        if 'forward' in state:
            yield 'unsure', f'{path}: a function forward of its own'
        in_block, pool = path.startswith(blocks), _pool_of(module)
        if path in placed or path.startswith(passed) or IDLE.fullmatch(module.kind):
            continue
        if not in_block and LEFT_OUT.search(path):
            continue
        parent = path.rpartition('.')[0]
        in_order = _kind(modules.get(parent)) == 'Sequential'
        if pool is not None and (not in_block or path.endswith('final_block.pool')):
            passed = f'{path}.'
            yield ('pools', pool) if pool in GLOBAL_POOLS else ('unsure', shown)
        elif state['_modules'] or not (in_block or with_head):
            continue
        elif in_block:
            if in_order or ACTS.get(kind) != act:
                yield 'odd', shown
        elif function := FINAL.get(kind) or ACTS.get(kind):
            in_chain = in_order and not prefix.startswith(f'{parent}.' if parent else '')  # which is read later
            if i > linear[-1] or (kind in FINAL and not in_order):
                if state.get('dim') not in (None, 1, -1):
                    yield 'odd', f'{shown}, dim={state["dim"]}'
                elif function != act or in_order:
                    yield 'final', function
            elif not in_chain and function != 'relu' and i < linear[0]:  # between two, the head's reader takes it
                yield 'unsure', shown
        else:
            tensors = {**(state.get('_parameters') or {}), **(state.get('_buffers') or {})}
            if not tensors or (kind != 'Linear' and getattr(tensors.get('weight'), 'ndim', 0) == 2):
                yield 'unsure', shown


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


def layers_of(head: list[Layer], modules: Modules, source: str) -> list[HeadLayer] | None:
    """The layers before the classifier, from the classes of pickled modules; None if the file does not say all of them.

    Args:
        head: The layers with tensors, the classifier last.
        modules: Path in the file -> module.
        source: Name of the checkpoint in errors.

    Raises:
        CheckpointError: A layer is of a class that no head has.
    """
    last = head[-1].name
    if last not in modules:
        return None
    parent, _, place = last.rpartition('.')
    own = {layer.name: layer for layer in head}
    is_sequential = _kind(modules.get(parent)) == 'Sequential' and place.isdigit()
    names = [f'{parent}.{i}'.lstrip('.') for i in range(int(place) + 1)] if is_sequential else [last]
    if not own.keys() <= {*names}:
        return None  # the order, and activations, stand in the program alone
    layers: list[HeadLayer] = []
    for name in names:
        module, layer = modules[name], own.get(name)
        kind, state = _kind(module), module.state
        is_plain = (_pair(state.get('stride', 1)), _pair(state.get('padding', 0))) == ((1, 1), (0, 0))
        if layer and TENSORS.get(kind) == layer.kind and is_plain:
            layers.append({'bn': state['eps']} if layer.kind == 'bn' else {'fc': layer.returns})
        elif not layer and kind in ACTS and not [*_differences(module, getattr(nn, kind)(), shares=False)]:
            layers.append({'act': ACTS[kind]})
        elif not layer and (IDLE.fullmatch(module.kind) or _pool_of(module) == 'avg'):
            layers.append({'drop': 0.0})
        else:
            raise CheckpointError(
                f'{source}: {name} is a {module.kind}, which no head has with its settings. num_classes=0 takes the '
                f'backbone without any head; head_layers=[...] names layers that compute the same.'
            )
    return layers[:-1]
