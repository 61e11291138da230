"""What the paper states, as data.

Source: François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357v3. The last
two tables are published by Keras and timm, not by the paper.
"""

from typing import Any

PAPER = 'arXiv:1610.02357v3'

# Section 3 and figure 5
CONV_LAYERS = 36
SEPARABLE_LAYERS = 34  # all but the first two, in figure 5
MODULES = 14
RESIDUAL_MODULES = list(range(2, MODULES))  # numbers from 1: all but the first and the last

# Table 3
PARAMETERS = {'Xception': 22_855_952, 'Inception V3': 23_626_728}
SIZE_DIFFERENCE = 0.035  # "approximately the same size (within 3.5%)"
STEPS_PER_SECOND = {'Xception': 28, 'Inception V3': 31}
STEPS_ON = '60 K80 GPUs, synchronous gradient descent; batch size not stated'

# Table 1: ImageNet's validation set, one crop and one model; top-1 and top-5 accuracy
IMAGENET = {
    'VGG-16': (0.715, 0.901),
    'ResNet-152': (0.770, 0.933),
    'Inception V3': (0.782, 0.941),
    'Xception': (0.790, 0.945),
}

# Table 2: trained on JFT, FastEval14k MAP@100, without fully connected layers and with two of 4096 units
JFT = {'Inception V3': (6.36, 6.50), 'Xception': (6.70, 6.78)}

# Figures 9 and 10 are curves without numbers; these are their verdicts
VERDICTS = {
    'figure 9': 'residual connections are "clearly essential", for convergence and final accuracy',
    'figure 10': 'between depthwise and pointwise convolution, no activation is best, then ReLU, then ELU',
}

# Section 4.2, ImageNet, and 4.3
MOMENTUM = 0.9
LEARNING_RATE = 0.045
WEIGHT_DECAY = {'Xception': 1e-5, 'Inception V3': 4e-5}
DROPOUT = 0.5

# Published by Keras (keras.applications, "Total params") and timm (results/, GMACs at 299 pixels), not by the paper
KERAS_TOTAL = {'Xception': 22_910_480, 'Inception V3': 23_851_784}
TIMM_GMACS = {'Xception': 8.4, 'Inception V3': 5.7}


def as_json() -> dict[str, Any]:
    """Tables 1 to 3 and the verdicts of figures 9 and 10."""
    return {
        'source': PAPER,
        'table 1, ImageNet': {name: {'top-1': top1, 'top-5': top5} for name, (top1, top5) in IMAGENET.items()},
        'table 2, JFT, FastEval14k MAP@100': {
            name: {'without FC layers': without, 'with FC layers': with_} for name, (without, with_) in JFT.items()
        },
        'table 3, parameters': PARAMETERS,
        'table 3, steps/s': {**STEPS_PER_SECOND, 'on': STEPS_ON},
        'verdicts': VERDICTS,
    }
