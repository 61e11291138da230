"""The networks that the ablations train, their scales, and the claims of the paper that they test."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..layers import MIN_IMG_SIZE
from . import quoted

Experiment = Literal['figures', 'spectrum']
ScaleName = Literal['small', 'gpu', 'paper']


@dataclass(frozen=True)
class Network:
    """What distinguishes a network from others at the same scale."""

    label: str
    args: dict[str, Any] = field(default_factory=dict)  # of the model
    width: float = 1.0  # factor of the width of the experiment
    model: str = 'xception_paper'
    weight_decay: float = quoted.WEIGHT_DECAY['Xception']
    min_image_size: int = 0  # height and width in pixels, where a scale has smaller ones


FIGURES = {
    'xception': Network('Xception'),
    'no_residual': Network('without residual connections', dict(residual=False)),
    'mid_relu': Network('ReLU in between', dict(mid_act_layer='relu')),
    'mid_elu': Network('ELU in between', dict(mid_act_layer='elu')),
    'inception_v3': Network(
        'Inception V3',
        model='inception_v3_narrow',
        weight_decay=quoted.WEIGHT_DECAY['Inception V3'],
        min_image_size=75,  # its last map is then a single position
    ),
}
# Segments, by name -> their number, and the width at which the network has as many parameters as with one per channel.
SEGMENTS = {'segments_1': (1, 0.31), 'segments_4': (4, 0.545), 'segments_8': (8, 0.68), 'one_per_channel': (None, 1.0)}
ACTIVATIONS = {'': {}, '_relu': dict(mid_act_layer='relu')}
SPECTRUM = {
    name + suffix: Network(
        name.replace('_', ' ') + (', ReLU in between' if args else ''),
        dict(order='pointwise_first', segments=segments, **args),
        width,
    )
    for name, (segments, width) in SEGMENTS.items()
    for suffix, args in ACTIVATIONS.items()
} | {'depthwise_first': Network('one per channel, depthwise first')}
NETWORKS: dict[str, dict[str, Network]] = {'figures': FIGURES, 'spectrum': SPECTRUM}

# Claim -> the network that it calls better, and the other one. EQUAL has the claims that call neither better.
CLAIMS = {
    'figure 6: Xception is above Inception V3': ('xception', 'inception_v3'),
    'figure 9: residual connections help': ('xception', 'no_residual'),
    'figure 10: no activation in between is better than ReLU': ('xception', 'mid_relu'),
    'figure 10: no activation in between is better than ELU': ('xception', 'mid_elu'),
    'figure 10: ReLU is better than ELU': ('mid_relu', 'mid_elu'),
    'section 4.7: with 1 segment, ReLU in between helps': ('segments_1_relu', 'segments_1'),
    'section 4.7: with 4 segments, ReLU in between helps': ('segments_4_relu', 'segments_4'),
    'section 4.7: with one segment per channel, ReLU in between harms': ('one_per_channel', 'one_per_channel_relu'),
}
EQUAL = {
    'section 1.2: the order of the operations is unimportant': ('depthwise_first', 'one_per_channel'),
    'section 5: 4 segments with ReLU may beat one per channel': ('one_per_channel', 'segments_4_relu'),
    'section 5: 8 segments with ReLU may beat one per channel': ('one_per_channel', 'segments_8_relu'),
}


@dataclass(frozen=True)
class Scale:
    """The size of an experiment."""

    settings: dict[str, Any]  # of finetune.py, on top of the recipe paper-imagenet
    widths: dict[str, float]  # of each experiment; 1.0 is the paper's
    rates: tuple[float, ...]  # learning rates to choose from for each network; empty for the paper's
    jobs: int  # runs at the same time
    train_images: dict[str, int] = field(default_factory=dict)  # of each experiment, new for each seed; by default all
    by_accelerate: bool = False  # whether a run takes all devices that `accelerate config` names


# An image is seen once. The averages of the weights reach over 100 updates, and the rate falls to zero.
SMALL: dict[str, Any] = dict(
    image_size=56,  # twice that of Fashion-MNIST; the maps of the middle flow are then 4x4
    epochs=1,
    batch_size=64,
    schedule='cosine',
    warmup_epochs=0.05,
    ema_decay=0.99,
    precise_bn_images=4096,
    crop_scale=[0.6, 1.0],
    scan=False,
)
# spectrum: at less than 0.41, the narrowest of its networks has no channel left in its stem
WIDTHS = dict(figures=0.1875, spectrum=0.42)
RATES = (0.015, quoted.LEARNING_RATE, 0.135)
SCALES = {
    'small': Scale(SMALL, WIDTHS, RATES, jobs=2, train_images=dict(spectrum=12_800)),
    'gpu': Scale(dict(SMALL, image_size=96, mixed_precision='bf16', workers=2), WIDTHS, RATES, jobs=8),
    'paper': Scale(dict(image_size=299, scan=False), dict.fromkeys(WIDTHS, 1.0), (), jobs=1, by_accelerate=True),
}
MOST_RATES = 5  # a rate beyond those given is tried where the best one is the highest or the lowest
# The runs that choose a rate have a seed that is not evaluated, and images kept aside from training.
TUNING: dict[str, Any] = dict(seed=1000, validation_split='', validation_share=0.05)
TUNING_IMAGES = dict(figures=9_600, spectrum=6_400)


def settings_of(
    name: str,
    *,
    scale: ScaleName,
    experiment: Experiment,
    dataset: str,
    seed: int = 0,
    rate: float | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Settings of finetune.py for a run; None stands for the scale's."""
    network, size = NETWORKS[experiment][name], SCALES[scale]
    width, image_size = round(network.width * size.widths[experiment], 4), size.settings['image_size']
    args = network.args if width == 1 else dict(network.args, width_multiplier=width)
    if image_size < MIN_IMG_SIZE and not network.min_image_size:
        args = dict(args, min_img_size=image_size)
    given = dict(epochs=epochs, learning_rate=rate, max_train_samples=size.train_images.get(experiment))
    return dict(
        size.settings,
        image_size=max(image_size, network.min_image_size),
        recipe='paper-imagenet',
        dataset=dataset,
        model=network.model,
        model_args=args,
        weight_decay=network.weight_decay,
        seed=seed,
        **{setting: value for setting, value in given.items() if value},
    )
