"""Each statement of the paper with a number or a comparison, and its result in this project."""

from typing import NamedTuple

from . import quoted as q

# Kind of result -> its meaning.
HOW = {
    'reproduced': 'this project does or computes the same, and a test asserts it',
    'counted': 'the command counts it on the network, and checks it',
    'small scale': 'measured at a much smaller scale than that of the paper',
    'quoted': 'not measured',
    'read from a curve': 'visible in a figure; the text of the paper does not state it',
}


class Sentence(NamedTuple):
    """What the paper states, in other words.

    Attributes:
        place: Section, table or figure.
        text: What it states, with the numbers of `quoted`.
        how: A key of `HOW`.
        check: The check of `checks.check` that shows it, where there is one.
    """

    place: str
    text: str
    how: str
    check: str = ''


# fmt: off
SENTENCES = [
    Sentence('1.1', 'a typical Inception module maps into 3 or 4 separate smaller spaces', 'quoted'),
    Sentence('figures 2, 3', 'the simplified module is strictly equivalent to one large 1x1 convolution with segments',
             'reproduced', 'figures 2 and 3: difference of their outputs'),
    Sentence('1.2', 'the order of the two operations is unimportant, since modules are stacked',
             'reproduced', 'section 1.2: difference of two stacks'),
    Sentence('3', f'{q.CONV_LAYERS} convolutional layers', 'counted', 'section 3: convolutional layers'),
    Sentence('3', f'{q.MODULES} modules', 'counted', 'section 3: modules'),
    Sentence('3', 'linear residual connections around all modules but the first and the last',
             'counted', 'section 3: modules with a linear residual connection'),
    Sentence('figure 5', f'{q.SEPARABLE_LAYERS} of the layers are depthwise separable',
             'counted', 'figure 5: depthwise separable ones'),
    Sentence('4.1', f'JFT: over {q.JFT_IMAGES:,} images of {q.JFT_CLASSES:,} classes', 'quoted'),
    Sentence('4.1', f'FastEval14k: {q.FAST_EVAL_IMAGES:,} images of about {q.FAST_EVAL_CLASSES:,} classes, '
             f'{q.FAST_EVAL_LABELS} labels an image on average', 'quoted'),
    Sentence('4.2', f'ImageNet: SGD, momentum {q.MOMENTUM}, learning rate {q.LEARNING_RATE}, times {q.DECAY_RATE} '
             f'every {q.DECAY_EPOCHS} epochs', 'reproduced'),
    Sentence('4.2', f'JFT: RMSprop, momentum {q.MOMENTUM}, learning rate {q.JFT_LEARNING_RATE}, '
             f'times {q.JFT_DECAY_RATE} every {q.JFT_DECAY_IMAGES:,} images', 'reproduced'),
    Sentence('4.2', 'all networks are evaluated with averages of their weights', 'reproduced'),
    Sentence('4.3', f'weight decay {q.WEIGHT_DECAY["Xception"]:g} for Xception, '
             f'{q.WEIGHT_DECAY["Inception V3"]:g} for Inception V3', 'reproduced'),
    Sentence('4.3', f'dropout of {q.DROPOUT} before the classifier on ImageNet, none on JFT', 'reproduced'),
    Sentence('4.4', f'{q.GPUS} K80 GPUs for each network; about {q.IMAGENET_DAYS} days on ImageNet, over '
             f'{q.JFT_MONTHS} month on JFT, not to convergence', 'quoted'),
    *(Sentence('table 1', f'ImageNet: {name} has top-1 {top1:.3f}, top-5 {top5:.3f}', 'quoted')
      for name, (top1, top5) in q.IMAGENET.items()),
    *(Sentence('table 2', f'JFT: {name} has MAP@100 {plain:.2f}, with fully connected layers {fc:.2f}', 'quoted')
      for name, (plain, fc) in q.JFT.items()),
    Sentence('4.5.1', f'{q.JFT_GAIN:.1%} better than Inception V3 on JFT, relatively', 'quoted'),
    *(Sentence(f'figure {number}', f'{data}: Xception is above Inception V3 at the end', 'read from a curve')
      for number, data in q.PROFILES.items()),
    *(Sentence('table 3', f'{name} has {count:,} parameters', 'counted', f'table 3: parameters of {name}')
      for name, count in q.PARAMETERS.items()),
    Sentence('4.5.2', f'the two are of the same size within {q.SIZE_DIFFERENCE:.1%}',
             'counted', 'section 4.5.2: difference in size'),
    *(Sentence('table 3', f'{name} makes {steps} training steps a second', 'small scale')
      for name, steps in q.STEPS_PER_SECOND.items()),
    Sentence('4.6, figure 9', 'residual connections are essential for this network, in speed and in accuracy',
             'small scale'),
    Sentence('4.6', 'a network like VGG of separable convolutions, without residual connections, beats Inception V3 '
             'on JFT', 'quoted'),
    Sentence('4.7, figure 10', 'no activation between the two operations is best', 'small scale'),
    Sentence('figure 10', 'of the two activations, ReLU is better than ELU', 'read from a curve'),
]
# fmt: on
