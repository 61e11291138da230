"""The layers of Xception: the separable convolution, SAME pooling, and the initialisation of Keras."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BN_EPS = 1e-3  # Keras' default is 1e-3, torch's 1e-5; one genuine moving variance is as small as 2.6e-5
BN_MOMENTUM = 0.01  # weight of the new batch; Keras gives the weight of the old statistics, 0.99
MIN_IMG_SIZE = 71  # pixels; Keras refuses less, and the last feature map is then 3x3
STEM_SIZE = 7  # pixels; below, the stem's two VALID convolutions have no output

ORDERS = ('depthwise_first', 'pointwise_first')

# torch before 2.7 does not distinguish export from compilation; exports need no gradients
is_exporting = getattr(torch.compiler, 'is_exporting', lambda: not torch.is_grad_enabled())


@torch.fx.wrap
def max_pool_same(x: Tensor, stride: int, dilation: int, symmetric: bool) -> Tensor:
    """3x3 max pooling with TensorFlow's SAME padding, which pads even sizes only below and to the right.

    Args:
        x: [B, C, H, W].
        stride: Step between two windows in positions: 2, or 1 in the dilated network.
        dilation: Distance between the taps in positions. The padding follows the grid of every `dilation`-th position,
            so the dilated network pools the same windows as the strided one at the positions that they share.
        symmetric: Pad one position on every side, as the legacy torch lineage does.

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)].
    """
    h, w = x.shape[2], x.shape[3]
    # pad an odd (strided) grid by one position above and to the left, an even one by none
    rows, columns = (h + dilation - 1) // dilation, (w + dilation - 1) // dilation
    top = 1 if symmetric else rows - rows // 2 * 2  # not %, which OpenVINO does not support
    left = 1 if symmetric else columns - columns // 2 * 2
    copy_free, exports = stride == 2 and dilation == 1, False
    if not torch.jit.is_scripting():
        # the copy-free form would tie an exported or compiled graph to the parity of the example
        exports = torch.jit.is_tracing() or is_exporting()
        copy_free = copy_free and not (exports or torch.compiler.is_compiling())
    if copy_free:
        return F.max_pool2d(x, 3, stride, padding=[top, left], ceil_mode=not symmetric)
    pad = [left * dilation, (2 - left) * dilation, top * dilation, (2 - top) * dilation]
    # Each window over the edge contains the edge values, so replicating them keeps the maximum; int8 cannot represent
    # -inf. torch 2.14 cannot compile the backward pass of this padding in channels_last.
    if dilation == 1 and exports:
        return F.max_pool2d(F.pad(x, pad, mode='replicate'), 3, stride)
    return F.max_pool2d(F.pad(x, pad, value=float('-inf')), 3, stride, dilation=dilation)


class MaxPool2dSame(nn.Module):
    """`max_pool_same` as a layer."""

    def __init__(self, stride: int = 2, dilation: int = 1, padding: str = 'same') -> None:
        super().__init__()
        self.stride = stride
        self.dilation = dilation
        self.symmetric = padding == 'symmetric'

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, ceil(H / stride), ceil(W / stride)]
        return max_pool_same(x, self.stride, self.dilation, self.symmetric)

    def extra_repr(self) -> str:
        return f'stride={self.stride}, dilation={self.dilation}, symmetric={self.symmetric}'


class SeparableConv2d(nn.Module):
    """A 3x3 convolution over segments of the channels and a 1x1 convolution over all of them, without biases.

    One segment is a regular convolution, 3 or 4 segments are an Inception module, one segment per channel is the
    extreme version of it (the default). The segments divide the channels of the 3x3 convolution:

    - 'pointwise_first', Inception's order: 1x1 from `in_chs` to `out_chs`, then 3x3 over segments of these `out_chs`.
      It has in_chs * out_chs + 9 * out_chs ** 2 / segments parameters.
    - 'depthwise_first', Xception's order: 3x3 over segments of the `in_chs`, then 1x1 from `in_chs` to `out_chs`.
      It has 9 * in_chs ** 2 / segments + in_chs * out_chs parameters. This is the mirror image of Inception: each tower
      reads its own segment with a 3x3 and then a 1x1, and the towers are added up instead of concatenated.

    Each parameter performs one multiply-add per position.

    Args:
        in_chs: Channels in.
        out_chs: Channels out.
        segments: Number of segments; None for one per channel.
        order: 'depthwise_first' or 'pointwise_first'.
        act: Module between the two convolutions, which keeps the number of channels; None for none.
        dilation: Distance between the taps of the 3x3 convolution.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Raises:
        ValueError: A width is below 1, the order is unknown, the segments do not divide the channels of the 3x3
            convolution, or `act` is not a module.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        segments: int | None = None,
        order: str = 'depthwise_first',
        act: nn.Module | None = None,
        dilation: int = 1,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        segments = checked_segments(in_chs, out_chs, segments, order, act)
        dd = {'device': device, 'dtype': dtype}
        self.order = order
        chs = in_chs if order == 'depthwise_first' else out_chs
        self.conv_dw = nn.Conv2d(chs, chs, 3, padding=dilation, dilation=dilation, groups=segments, bias=False, **dd)
        self.act = act or nn.Identity()
        self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:  # [B, in_chs, H, W]
        if self.order == 'depthwise_first':
            return self.conv_pw(self.act(self.conv_dw(x)))  # [B, out_chs, H, W]
        return self.conv_dw(self.act(self.conv_pw(x)))  # [B, out_chs, H, W]

    def extra_repr(self) -> str:
        return f'segments={self.conv_dw.groups}, order={self.order!r}'


def checked_segments(in_chs: int, out_chs: int, segments: int | None, order: str, act: nn.Module | None) -> int:
    """Returns the number of segments, or raises a ValueError that names the first impossible argument."""
    check_argument('in_chs', in_chs, in_chs >= 1, 'at least 1')
    check_argument('out_chs', out_chs, out_chs >= 1, 'at least 1')
    check_argument('order', order, order in ORDERS, f'one of {ORDERS}')
    check_argument('act', act, act is None or isinstance(act, nn.Module), 'a module, such as nn.ReLU(), or None')
    name, chs = ('in_chs', in_chs) if order == 'depthwise_first' else ('out_chs', out_chs)
    divisors = [i for i in range(1, chs + 1) if chs % i == 0]
    check_argument(
        'segments',
        segments,
        segments is None or segments in divisors,
        f'None (one per channel) or a divisor of {name}={chs}, one of {divisors}',
    )
    return chs if segments is None else segments


def check_argument(name: str, value: object, valid: bool, choices: str) -> None:
    if not valid:
        raise ValueError(f'{name}={value!r} is not possible: it must be {choices}.')


def init_weights(module: nn.Module) -> None:
    """Initialises one layer as Keras does: Glorot uniform, biases zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        module.reset_parameters()


def recomputed_in_backward(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Maps `x` [B, C, H, W] by `forward` without keeping activations; the backward pass computes them again."""
    if torch.compiler.is_compiling():  # the compiler recomputes without side effects, and refuses `context_fn`
        return checkpoint(forward, x, use_reentrant=False)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    return checkpoint(forward, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _fixed_statistics(norms)))


@contextmanager
def _fixed_statistics(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """Prevents the recomputation from updating the moving statistics a second time."""
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, state in zip(norms, states):
            norm.momentum, norm.num_batches_tracked = state
