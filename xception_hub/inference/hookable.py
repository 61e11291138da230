"""A copy of a model on which backward hooks of other libraries work."""

import copy

from torch import Tensor, nn


def hookable(model: nn.Module) -> nn.Module:
    """Copies a model in evaluation mode so that full backward hooks work on every module.

    Activations are not in place, because torch forbids this with such hooks. Each layer without parameters gets a copy
    of its input. Otherwise a hook that replaces the gradient of an activation's input would also replace that of the
    residual connection, which shares this input.

    Args:
        model: Any model. It is not changed.

    Returns:
        The copy. It computes the same numbers, but needs more memory.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if getattr(module, 'inplace', False):
            module.inplace = False  # type: ignore[assignment]
        if next(module.children(), None) is None and next(module.parameters(), None) is None:
            module.register_forward_pre_hook(_clone)
    return model


def _clone(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # [B, ...] each
    return tuple(tensor.clone() for tensor in inputs)
