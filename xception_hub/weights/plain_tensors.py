"""Folds what torch keeps in several tensors into the plain one that evaluation computes with."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..topology import LAYERS

StateDict = dict[str, Tensor]


def _pruned(original: Tensor, mask: Tensor) -> Tensor:
    return mask.to(original.dtype) * original


def _weight_norm(length: Tensor, direction: Tensor) -> Tensor:
    """The lengths have size 1 along all axes but the one that torch calls `dim`; a single one is that of the whole."""
    axis = next((axis for axis, size in enumerate(length.shape) if size > 1), -1)
    if axis >= 0 and length.numel() != direction.shape[axis]:
        raise ValueError(f'{list(length.shape)} lengths of {list(direction.shape)}')
    return torch._weight_norm(direction, length if axis >= 0 else length.reshape(()), axis)


def _spectral_norm(original: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return original / torch.dot(left, torch.mv(original.flatten(1), right))


# Names of the tensors that stand for the one called '{0}' -> what they become. Prunings come first: others hold them.
FORMS: list[tuple[tuple[str, ...], Callable[..., Tensor]]] = [
    (('{0}_orig', '{0}_mask'), _pruned),
    (('{0}_orig', '{0}_u', '{0}_v'), _spectral_norm),
    (('parametrizations.{0}.original', 'parametrizations.{0}.0._u', 'parametrizations.{0}.0._v'), _spectral_norm),
    (('{0}_g', '{0}_v'), _weight_norm),
    (('parametrizations.{0}.original0', 'parametrizations.{0}.original1'), _weight_norm),
]
PARAMETRIZED = re.compile(r'(^|\.)(parametrizations\.\w+\.[\w.]+|(weight|bias)_(orig|mask|g|u|v))$')


def plain(tensors: StateDict, source: str) -> StateDict:
    """The tensors of a file with pruning, weight norm and spectral norm folded, and 8-bit floats as 32-bit ones.

    Raises:
        CheckpointError: A tensor is computed in another way from others.
    """
    taken = {
        name: tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor
        for name, tensor in tensors.items()
    }
    for names, fold in FORMS:
        first = re.compile(r'((?:.*\.)?)' + re.escape(names[0]).replace(r'\{0\}', r'((?:weight|bias)\w*)'))
        for name in list(taken):
            if not (match := first.fullmatch(name)):
                continue
            prefix, kind = match.groups()
            parts = [prefix + part.format(kind) for part in names]
            others = [part for part in taken if part.startswith(f'{prefix}parametrizations.{kind}.')]
            if not {*others} <= {*parts} <= {*taken}:
                continue
            try:
                folded = fold(*(taken[part] for part in parts))
            except (RuntimeError, ValueError):
                continue
            taken = {f'{prefix}{kind}' if part == name else part: folded if part == name else tensor
                     for part, tensor in taken.items() if part == name or part not in parts}  # fmt: skip
    if left := [name for name in taken if PARAMETRIZED.search(name)]:
        raise CheckpointError(
            f'{source}: {left[0]} and {len(left) - 1} others are parts of tensors that are computed from them in a way '
            f'that is not known. Where the program is, make them plain, and save again: '
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), or the remove function of "
            f'torch.nn.utils that belongs to what was applied.'
        )
    return taken


def without_biases(tensors: StateDict) -> StateDict:
    """This network's tensors; a bias of a convolution is subtracted from the mean of the normalization after it."""
    taken = dict(tensors)
    for conv, norm in zip(LAYERS[::2], LAYERS[1::2]):
        mean = f'{norm.torch}.running_mean'
        if mean not in taken:
            continue
        if conv.kind == 'conv':
            bias = taken.pop(f'{conv.torch}.bias', None)
        else:
            depthwise, bias = (taken.pop(f'{conv.torch}.{part}.bias', None) for part in ('conv_dw', 'conv_pw'))
            if depthwise is not None:  # the 1x1 convolution adds it up
                matrix = taken[f'{conv.torch}.conv_pw.weight'].flatten(1).double()
                bias = matrix @ depthwise.double() + (0 if bias is None else bias.double())
        if bias is not None:
            taken[mean] = (taken[mean].double() - bias.double()).to(taken[mean].dtype)
    return taken
