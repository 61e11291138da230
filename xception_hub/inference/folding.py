"""Batch normalization as a part of the convolutions before it: the same function with fewer operations."""

import copy

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from ..errors import in_one_line


def fold(model: nn.Module) -> nn.Module:
    """A copy of a model for inference, in which each convolution has the batch normalization after it in its weights.

    The weights are multiplied in float64 and rounded once. In float64 the copy computes what the model does to 1e-12.

    Args:
        model: Any model that `torch.fx` can trace: all of this project, and most of timm. It stays as it is.

    Raises:
        Exception: torch.fx cannot trace the model. Its errors have no class in common.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.get_default_dtype())
    with torch.no_grad():
        return fuse(copy.deepcopy(model).eval().double()).to(dtype)


def folded(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A folded copy, or a copy as the model is, with the reason, where torch.fx cannot trace it."""
    try:
        return fold(model), []
    except Exception as e:  # of torch.fx, whose errors have no class in common
        reason = f'Batch normalization is not folded: torch.fx cannot trace it ({in_one_line(e)}).'
        return copy.deepcopy(model), [reason]
