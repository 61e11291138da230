"""Figure 5 once, as a table: the names of its layers here, in Keras and in the legacy torch lineage."""

from collections.abc import Iterator
from typing import NamedTuple


class Module(NamedTuple):
    """One of the paper's 14 modules.

    Attributes:
        torch: Name in `xception_hub.Xception`.
        number: Number in the paper, from 1; Keras calls it a block.
        convs: Number of convolutional layers in its stack.
        strided: Whether it halves the map, and has a 1x1 convolution with a normalization around the stack.
    """

    torch: str
    number: int
    convs: int
    strided: bool = False


class Layer(NamedTuple):
    """One layer with weights.

    Attributes:
        keras: Name in Keras 2 and 3. Keras leaves the residual layers unnamed; here it is 'block2_residual_conv'.
        legacy: Name in the legacy torch lineage.
        torch: Name in `xception_hub.Xception`.
        kind: 'conv', 'sepconv' or 'bn'.
    """

    keras: str
    legacy: str
    torch: str
    kind: str


# fmt: off
MODULES = [
    Module('stem', 1, convs=2),
    Module('entry_flow.0', 2, convs=2, strided=True),
    Module('entry_flow.1', 3, convs=2, strided=True),
    Module('entry_flow.2', 4, convs=2, strided=True),
    *(Module(f'middle_flow.{i}', 5 + i, convs=3) for i in range(8)),
    Module('exit_flow.0', 13, convs=2, strided=True),
    Module('exit_flow.1', 14, convs=2),
]
# fmt: on

# Where two networks are compared: after each module, after the pooling, and at the end.
TAPS = [*(module.torch for module in MODULES), 'head.global_pool', 'head']


def _layers() -> Iterator[Layer]:
    """All layers with weights of the backbone, in the order in which Keras creates them."""
    for torch, number, convs, strided in MODULES:
        keras, block = f'block{number}', f'block{number - 1}'  # the lineage's block 1 is the paper's module 2
        if strided:
            yield Layer(f'{keras}_residual_conv', f'{block}.skip', f'{torch}.shortcut.conv', 'conv')
            yield Layer(f'{keras}_residual_bn', f'{block}.skipbn', f'{torch}.shortcut.bn', 'bn')
        for i in range(1, convs + 1):
            if number == 1:
                yield Layer(f'{keras}_conv{i}', f'conv{i}', f'stem.conv{i}', 'conv')
                yield Layer(f'{keras}_conv{i}_bn', f'bn{i}', f'stem.bn{i}', 'bn')
                continue
            # the lineage's `rep` numbers activations too: one stands before each convolution but the first of block 1
            place = 3 * i - (3 if number == 2 else 2)
            conv, norm = (f'conv{i + 2}', f'bn{i + 2}') if number == 14 else (
                f'{block}.rep.{place}', f'{block}.rep.{place + 1}')  # fmt: skip
            yield Layer(f'{keras}_sepconv{i}', conv, f'{torch}.stack.conv{i}', 'sepconv')
            yield Layer(f'{keras}_sepconv{i}_bn', norm, f'{torch}.stack.bn{i}', 'bn')


LAYERS = list(_layers())


def _legacy_names() -> Iterator[tuple[str, str]]:
    for layer in LAYERS:
        if layer.kind == 'sepconv':
            yield f'{layer.legacy}.conv1', f'{layer.torch}.conv_dw'
            yield f'{layer.legacy}.pointwise', f'{layer.torch}.conv_pw'
        else:
            yield layer.legacy, layer.torch


# Convolutions and normalizations, the two of a separable convolution apart: legacy lineage -> this network.
LEGACY_NAMES = dict(_legacy_names())
