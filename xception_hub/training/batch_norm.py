"""Statistics of batch normalization that belong to the weights which they are used with (precise BN).

Moving statistics are averages over past batches, and so over past weights. After few updates, and all the more beside
averaged weights, they are far from what the layers see.
"""

from collections.abc import Iterable

from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ..models.build import evaluating
from ..models.classifier import BATCH_NORMS
from .processes import Machine


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer keeps moving statistics."""
    return any(isinstance(layer, BATCH_NORMS) and layer.track_running_stats for layer in module.modules())


def recompute(module: nn.Module, inputs: Iterable[Tensor], machine: Machine) -> None:
    """Replaces the moving statistics by the means over batches, each of which is normalized by its own.

    Args:
        module: Network, which sees the batches as in training. Afterwards each layer is in its earlier mode.
        inputs: This process' batches [B, ...]; all processes have as many.
        machine: The processes, which end with the same statistics: the means over the batches of all of them.
    """
    with evaluating(module), machine.accelerator.autocast():
        update_bn(inputs, module)
    if machine.processes > 1:
        distribute_bn(module, machine.processes, reduce=True)
