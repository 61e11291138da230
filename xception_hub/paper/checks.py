"""Counts what the paper states in numbers, on the networks that timm creates on the meta device (without weights)."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import timm
import torch
from timm.layers import ConvNormAct
from timm.models.inception_v3 import InceptionA, InceptionB, InceptionC
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import xception_hub  # noqa: F401 (registers the model)

from ..layers import SeparableConv2d
from . import quoted
from .inception import InceptionModule, exchange_order, merge_towers, simplified_towers

IMAGE_SIZE = 299  # pixels, of the paper's ImageNet experiments
MODELS = {'Xception': 'xception_paper', 'Inception V3': 'inception_v3'}
HEAD = 'head'
ROUNDING = 1e-12  # of outputs of about 1 in float64, and far below any other difference
LINEAR_LAYERS = (nn.Identity, nn.Conv2d, nn.BatchNorm2d)

Sizes = Mapping[nn.Module, tuple[torch.Size, torch.Size]]  # shapes of the maps before and after each layer


class Claim(NamedTuple):
    """What is claimed, the value expected, the value found, and whether the claim holds."""

    claim: str
    expected: object
    found: object
    holds: bool


class Module(NamedTuple):
    """One of the paper's modules, or the head.

    Attributes:
        layers: Number of convolutional layers, without those of the residual connection.
        separable: Number of depthwise separable layers.
        residual: Whether a residual connection was used and has only linear layers.
        size: Height of the output map [B, channels, size, size] in pixels; 0 if the output is not a map.
        parameters: Number of trainable parameters.
        macs: Multiply-adds for one image.
    """

    name: str
    layers: int
    separable: int
    residual: bool
    size: int
    channels: int
    parameters: int
    macs: int


class Step(NamedTuple):
    """A change to a network, and its number of trainable parameters after the change."""

    change: str
    parameters: int


class Counts(NamedTuple):
    """Everything that is counted. The keys of each dict are those of `MODELS`.

    Attributes:
        parameters: Trainable parameters of the networks that the paper compares.
        keras_total: Parameters as Keras 3 counts them, moving statistics included.
        inception: Steps from timm's Inception V3 to the one that the paper counts.
        modules: The modules of Xception, with its head.
        macs: Multiply-adds for one image of 299x299 pixels.
    """

    parameters: dict[str, int]
    keras_total: dict[str, int]
    inception: list[Step]
    modules: list[Module]
    macs: dict[str, int]


def create(name: str) -> nn.Module:
    """Creates a network of `MODELS` for inference; its parameters have shapes but no values."""
    with torch.device('meta'):
        return timm.create_model(MODELS[name], pretrained=False).eval()


def count_parameters(network: nn.Module) -> int:
    """Counts trainable parameters, as table 3 does."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_channels(network: nn.Module) -> int:
    """Counts the channels of all batch normalizations."""
    return sum(layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))


def paper_inception(network: nn.Module) -> Iterator[Step]:
    """Turns timm's Inception V3, in place, into the network whose parameters table 3 counts.

    The author's own Keras version from before the paper has exactly the paper's number of parameters. It is narrower
    than the published network in three places, and its convolutions have biases. Its other differences, ReLU before
    batch normalization and another pool, have no parameters and are left out. The steps name modules as Keras does.
    """
    conv_block = partial(ConvNormAct, padding=0, norm_kwargs=dict(eps=1e-3))
    yield Step("timm's inception_v3", count_parameters(network))
    with torch.device('meta'):
        network.Mixed_5c = InceptionA(256, pool_features=32, conv_block=conv_block)
        network.Mixed_5d = InceptionA(256, pool_features=32, conv_block=conv_block)
        network.Mixed_6a = InceptionB(256, conv_block=conv_block)  # its pooling tower passes 256 channels on, not 288
        network.Mixed_6b = InceptionC(736, channels_7x7=128, conv_block=conv_block)
        yield Step('mixed1 and mixed2: 32 channels in the pooling tower, not 64', count_parameters(network))
        mixed7 = network.get_submodule('Mixed_6e')
        mixed7.branch7x7dbl_1 = conv_block(768, 160, kernel_size=1)
        mixed7.branch7x7dbl_2 = conv_block(160, 192, kernel_size=(7, 1), padding=(3, 0))
        yield Step('mixed7: 160 channels at first in the longest tower, not 192', count_parameters(network))
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.bias = nn.Parameter(torch.empty(layer.out_channels))
        yield Step('a bias in every convolution, in addition to gamma and beta', count_parameters(network))


def module_names(network: nn.Module) -> list[str]:
    """Names of the modules before the head: the stem, and every module of the flows."""
    return [name for name, _ in network.named_modules() if re.fullmatch(r'stem|\w+_flow\.\d+', name)]


def count_layers(module: nn.Module) -> tuple[int, int]:
    """Counts convolutional layers, and those of them that are depthwise separable.

    The two convolutions of a `SeparableConv2d` are one layer, which is depthwise separable if it has a segment for each
    channel. Convolutions within `shortcut` are not counted.
    """
    convs = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
    pairs = [layer for layer in module.modules() if isinstance(layer, SeparableConv2d)]
    layers = sum(name.partition('.')[0] != 'shortcut' for name in convs) - len(pairs)
    return layers, sum(pair.conv_dw.groups == pair.conv_dw.in_channels for pair in pairs)


def is_linear(layer: nn.Module) -> bool:
    """Whether the layer consists only of convolutions, batch normalizations and identities."""
    return all(isinstance(leaf, LINEAR_LAYERS) for leaf in layer.modules() if next(leaf.children(), None) is None)


def map_sizes(network: nn.Module, size: int = IMAGE_SIZE, chs: int = 3) -> Sizes:
    """Shapes of all maps in one pass of an image [1, chs, size, size] through a network on the meta device.

    Returns:
        Each layer that was used -> the shapes [1, C, H, W] or [1, C] before and after it.
    """
    sizes: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes[layer] = inputs[0].shape, output.shape

    handles = [layer.register_forward_hook(record) for layer in network.modules()]
    network(torch.empty(1, chs, size, size, device='meta'))
    for handle in handles:
        handle.remove()
    return sizes


def count_macs(network: nn.Module, size: int = IMAGE_SIZE, chs: int = 3) -> dict[str, int]:
    """Counts multiply-adds for one image: half of the floating point operations that torch counts.

    Args:
        network: A network on the meta device.
        size: Height and width of the image in pixels.
        chs: Channels of the image.

    Returns:
        The multiply-adds of each layer at any depth by name; '' is the whole network.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.empty(1, chs, size, size, device='meta'))
    macs = {'': counter.get_total_flops() // 2}
    for path, flops in counter.get_flop_counts().items():
        root, _, name = path.partition('.')
        if name and root == type(network).__name__:
            macs[name] = sum(flops.values()) // 2
    return macs


def count_modules(network: nn.Module, size: int = IMAGE_SIZE) -> list[Module]:
    """Counts each module, and the head last, for images of `size` x `size` pixels."""
    macs, sizes, counted = count_macs(network, size), map_sizes(network, size), []
    for name in [*module_names(network), HEAD]:
        module = network.get_submodule(name)
        shortcut, (_, shape) = getattr(module, 'shortcut', None), sizes[module]
        residual = shortcut is not None and shortcut in sizes and is_linear(shortcut)
        height = shape[2] if len(shape) == 4 else 0
        costs = count_parameters(module), macs.get(name, 0)
        counted.append(Module(name, *count_layers(module), residual, height, shape[1], *costs))
    return counted


def count() -> Counts:
    """Counts everything on the networks that timm creates."""
    xception, inception = create('Xception'), create('Inception V3')
    channels = count_channels(inception)
    macs = {'Xception': count_macs(xception)[''], 'Inception V3': count_macs(inception)['']}
    keras_total = {
        'Xception': count_parameters(xception) + 2 * count_channels(xception),  # moving mean and variance
        'Inception V3': count_parameters(inception) - channels + 2 * channels,  # and no gamma
    }
    steps = list(paper_inception(inception))
    parameters = {'Xception': count_parameters(xception), 'Inception V3': steps[-1].parameters}
    return Counts(parameters, keras_total, steps, count_modules(xception), macs)


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, chs: int) -> float:
    """The largest difference of two networks' outputs for the same maps [1, chs, 9, 9]."""
    x = torch.randn(1, chs, 9, 9, dtype=torch.float64)
    return (one(x) - other(x)).abs().max().item()


def equivalences() -> Iterator[Claim]:
    """Computes the equivalences that the paper states for figures 1 to 4: other modules, the same function."""
    figure_2 = InceptionModule(12, simplified_towers(3, 8)).double()
    stack = [SeparableConv2d(12, 12, order='pointwise_first', act=nn.ReLU()).double() for _ in range(3)]
    for claim, one, other in (
        ('figures 2 and 3: difference of their outputs', figure_2, merge_towers(figure_2)),
        ('section 1.2: difference of two stacks', nn.Sequential(*stack), exchange_order(stack)),
    ):
        found = difference(one, other, 12)
        yield Claim(claim, f'below {ROUNDING:.0e}', f'{found:.1e}', found < ROUNDING)


def check(counts: Counts) -> list[Claim]:
    """Checks every claim that counting and computing can check, in the order in which the command prints them."""
    base = [module for module in counts.modules if module.name != HEAD]
    residual = [number for number, module in enumerate(base, start=1) if module.residual]
    in_size = abs(1 - counts.parameters['Xception'] / counts.parameters['Inception V3'])
    within = f'within {quoted.SIZE_DIFFERENCE:.1%}'
    macs, gmacs = counts.macs, {name: round(macs / 1e9, 1) for name, macs in counts.macs.items()}
    keras = 'Keras: parameters of {}, moving statistics included'
    rows: list[tuple[str, object, object]] = [
        *((f'table 3: parameters of {name}', quoted.PARAMETERS[name], counts.parameters[name]) for name in MODELS),
        *((keras.format(name), quoted.KERAS_TOTAL[name], counts.keras_total[name]) for name in MODELS),
        ('section 3: convolutional layers', quoted.CONV_LAYERS, sum(module.layers for module in base)),
        ('figure 5: depthwise separable ones', quoted.SEPARABLE_LAYERS, sum(module.separable for module in base)),
        ('section 3: modules', quoted.MODULES, len(base)),
        ('section 3: modules with a linear residual connection', quoted.RESIDUAL_MODULES, residual),
        ("sum of the modules' multiply-adds", macs['Xception'], sum(module.macs for module in counts.modules)),
        *((f'timm: GMACs of {name}', quoted.TIMM_GMACS[name], gmacs[name]) for name in MODELS),
    ]
    return [
        *equivalences(),
        Claim('section 4.5.2: difference in size', within, f'{in_size:.2%}', in_size <= quoted.SIZE_DIFFERENCE),
        *(Claim(claim, expected, found, expected == found) for claim, expected, found in rows),
    ]
