"""Statistics of batch normalization, recomputed for the current weights (precise BN).

Moving statistics are averages over past batches, and so over past weights. After few updates, and even more with
averaged weights, they are far from the statistics of the layers' inputs.
"""

from collections.abc import Iterable

from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ..models.build import evaluating
from .processes import Machine


def recompute(module: nn.Module, inputs: Iterable[Tensor], machine: Machine) -> None:
    """Replaces the moving statistics by means over batches. Each batch is normalized by its own statistics.

    Args:
        module: Network, which computes the batches as in training. Afterwards each layer is in its earlier mode.
        inputs: This process' batches [B, ...]. All processes need the same number.
        machine: The processes. All get the same statistics, the means over the batches of all processes.
    """
    with evaluating(module), machine.autocast():
        update_bn(inputs, module)
    if machine.num_processes > 1:
        distribute_bn(module, machine.num_processes, reduce=True)
