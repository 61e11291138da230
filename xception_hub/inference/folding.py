"""Folds batch normalization into the convolutions before it: the network computes the same with fewer operations."""

import copy

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from ..errors import in_one_line


def fold(model: nn.Module) -> nn.Module:
    """Copies a model for inference, with each batch normalization folded into the weights of its convolution.

    The weights are multiplied in float64 and rounded once. In float64, the outputs of copy and model agree to 1e-12.

    Args:
        model: Any model that `torch.fx` can trace: all of this project, and most of timm. It is not changed.

    Raises:
        Exception: torch.fx cannot trace the model. Its errors have no common class.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.get_default_dtype())
    with torch.no_grad():
        return fuse(copy.deepcopy(model).eval().double()).to(dtype)


def folded(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Returns a folded copy; if torch.fx cannot trace the model, an unchanged copy and the reason."""
    try:
        return fold(model), []
    except Exception as e:  # of torch.fx, whose errors have no class in common
        reason = f'Batch normalization is not folded: torch.fx cannot trace the model ({in_one_line(e)}).'
        return copy.deepcopy(model), [reason]
