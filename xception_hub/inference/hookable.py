"""A model on which other libraries' hooks see what they expect."""

import copy

from torch import Tensor, nn


def hookable(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode on which full backward hooks work, on every module.

    Activations are no longer in place, which torch refuses beside such hooks. Each layer without parameters takes a
    tensor of its own: a hook that replaces the gradient of an activation's input would else replace that of the
    residual connection, too, where both take the same tensor.

    Args:
        model: Any model. It stays as it is.

    Returns:
        The copy, which computes the same numbers from more memory.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if getattr(module, 'inplace', False):
            module.inplace = False  # type: ignore[assignment]
        if next(module.children(), None) is None and next(module.parameters(), None) is None:
            module.register_forward_pre_hook(_clone)
    return model


def _clone(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in inputs)
