"""The modules of figure 5: the stem, and a stack of separable convolutions with the residual connection around it."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.layers import DropPath, create_act_layer
from torch import Tensor, nn

from .layers import BN_EPS, BN_MOMENTUM, MaxPool2dSame, SeparableConv2d, recomputed_in_backward

ActLayer = str | type[nn.Module]


@torch.fx.wrap  # a leaf of symbolic traces: the checks and the padding depend on the size
def check_input(x: Tensor, in_chans: int, min_img_size: int) -> Tensor:
    """Returns `x` [B, C, H, W] unchanged, or raises a ValueError that names the fault of its shape."""
    if x.dim() != 4 or x.shape[1] != in_chans:
        raise ValueError(
            f'The input is {list(x.shape)}, but this model takes [batch, {in_chans}, height, width]. '
            f'Reshape it, or create the model with in_chans=<channels of the input>.'
        )
    if x.shape[2] < min_img_size or x.shape[3] < min_img_size:
        raise ValueError(
            f'The input is {x.shape[2]}x{x.shape[3]} pixels, but this model takes at least '
            f'{min_img_size}x{min_img_size} (71 is the limit of Keras). Resize the images, or create the model with '
            f'min_img_size=<smallest size, at least 7>.'
        )
    return x


class Stem(nn.Module):
    """Module 1 of the paper: two regular 3x3 convolutions, the first with stride 2. Default: no padding."""

    def __init__(
        self,
        in_chans: int,
        widths: tuple[int, int],
        min_img_size: int,
        act_layer: ActLayer,
        bn_eps: float,
        padding: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.in_chans = in_chans
        self.min_img_size = min_img_size
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, stride=2, padding=padding, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=bn_eps, momentum=BN_MOMENTUM, **dd)
        self.act1 = create_act_layer(act_layer, inplace=True)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=padding, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(widths[1], eps=bn_eps, momentum=BN_MOMENTUM, **dd)
        self.act2 = create_act_layer(act_layer, inplace=True)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:  # [B, in_chans, H, W] -> [B, widths[1], ~H/2, ~W/2]
        x = check_input(x, self.in_chans, self.min_img_size)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self._forward_checkpointed(x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:  # [B, in_chans, H, W]
        x = self.act1(self.bn1(self.conv1(x)))  # [B, widths[0], ~H/2, ~W/2]
        return self.act2(self.bn2(self.conv2(x)))  # [B, widths[1], ~H/2, ~W/2]

    @torch.jit.ignore
    def _forward_checkpointed(self, x: Tensor) -> Tensor:  # [B, in_chans, H, W] -> [B, widths[1], ~H/2, ~W/2]
        return recomputed_in_backward(self, self._forward, x)


class XceptionModule(nn.Module):
    """Modules 2 to 14: a stack of separable convolutions, each with its batch normalization and activation.

    Args:
        in_chs: Channels in.
        widths: Channels out of each separable convolution.
        separable_conv: Callable that makes a separable convolution from in_chs and out_chs and, by keyword, dilation,
            act, device and dtype.
        pool_stride: Stride of the max pooling that ends the stack and of the 1x1 convolution beside it; 0 for neither.
        dilation: Distance between the taps of 3x3 convolutions and pooling.
        residual: Linear connection around the stack (all modules but the first and the last have one).
        acts: Position of the activations: 'before' each convolution, 'between' convolutions (module 2, because the
            stem ends with an activation), or 'after' each normalization (module 14).
        act_layer: timm's name of the activation, or its class.
        mid_act_layer: Activation between the two operations of each separable convolution; None for none.
        bn_eps: Epsilon of the batch normalizations.
        pool_padding: 'same' or 'symmetric', see `MaxPool2dSame`.
        drop_path: Probability of skipping the stack for an image in training.
    """

    def __init__(
        self,
        in_chs: int,
        widths: Sequence[int],
        separable_conv: Callable[..., nn.Module] = SeparableConv2d,
        pool_stride: int = 0,
        dilation: int = 1,
        residual: bool = True,
        acts: str = 'before',
        act_layer: ActLayer = 'relu',
        mid_act_layer: ActLayer | None = None,
        bn_eps: float = BN_EPS,
        pool_padding: str = 'same',
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        batch_norm: Callable[[int], nn.Module] = partial(nn.BatchNorm2d, eps=bn_eps, momentum=BN_MOMENTUM, **dd)

        self.stack = nn.Sequential()
        chs = in_chs
        for i, width in enumerate(widths, start=1):
            if acts == 'before' or (acts == 'between' and i > 1):
                # the first one is not in place, because the residual connection needs the unchanged input
                self.stack.add_module(f'act{i}', create_act_layer(act_layer, inplace=i > 1))
            mid_act = create_act_layer(mid_act_layer, inplace=True) if mid_act_layer else None
            self.stack.add_module(f'conv{i}', separable_conv(chs, width, dilation=dilation, act=mid_act, **dd))
            self.stack.add_module(f'bn{i}', batch_norm(width))
            if acts == 'after':
                self.stack.add_module(f'act{i}', create_act_layer(act_layer, inplace=True))
            chs = width
        if pool_stride:
            self.stack.add_module('pool', MaxPool2dSame(pool_stride, dilation, pool_padding))

        self.shortcut: nn.Module | None = None
        if residual:
            self.shortcut = nn.Identity()
            if pool_stride:
                self.shortcut = nn.Sequential()
                self.shortcut.add_module('conv', nn.Conv2d(in_chs, chs, 1, stride=pool_stride, bias=False, **dd))
                self.shortcut.add_module('bn', batch_norm(chs))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:  # [B, in_chs, H, W]
        checkpointing = self.grad_checkpointing and not torch.jit.is_scripting()
        out = self._stack_checkpointed(x) if checkpointing else self.stack(x)
        if self.shortcut is not None:
            out = self.drop_path(out) + self.shortcut(x)
        return out  # [B, widths[-1], H, W]; with a pooling [B, widths[-1], ceil(H / stride), ceil(W / stride)]

    @torch.jit.ignore
    def _stack_checkpointed(self, x: Tensor) -> Tensor:
        """Maps [B, in_chs, H, W] through the stack and recomputes it in parts, because a whole needs more memory."""
        names = list(self.stack._modules)
        starts = [0, *(i for i, name in enumerate(names) if name.startswith('conv') and name != 'conv1')]
        for start, end in zip(starts, [*starts[1:], len(names)]):  # no part begins with an in-place layer
            part = self.stack[start:end]
            x = recomputed_in_backward(part, part, x)
        return x
