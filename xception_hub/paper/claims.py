"""The statements of the paper with a number or a comparison, and what this project did with each."""

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
    """A statement of the paper.

    Attributes:
        place: Section, table or figure.
        text: The statement, with the numbers of `quoted`.
        how: Result, a key of `HOW`.
        checks: Names of the checks in `checks.check` that count it.
    """

    place: str
    text: str
    how: str
    checks: tuple[str, ...] = ()


def each(values: dict[str, str]) -> str:
    """Name and value of each network."""
    return '; '.join(f'{name} {value}' for name, value in values.items())


# fmt: off
SENTENCES = [
    Sentence('1.1', 'a typical Inception module maps into 3 or 4 separate smaller spaces', 'quoted'),
    Sentence('figures 2, 3', 'the simplified module is strictly equivalent to one large 1x1 convolution with segments',
             'reproduced', ('figures 2 and 3: difference of their outputs',)),
    Sentence('1.2', 'the order of the two operations is unimportant, since modules are stacked',
             'reproduced', ('section 1.2: difference of two stacks',)),
    Sentence('3', f'{q.CONV_LAYERS} convolutional layers in {q.MODULES} modules, with linear residual connections '
             'around all but the first and the last', 'counted',
             ('section 3: convolutional layers', 'section 3: modules',
              'section 3: modules with a linear residual connection')),
    Sentence('figure 5', f'{q.SEPARABLE_LAYERS} of the layers are depthwise separable',
             'counted', ('figure 5: depthwise separable ones',)),
    Sentence('4.1', 'JFT has over 350,000,000 images of 17,000 classes; FastEval14k has 14,000 images of about 6,000 '
             'classes, 36.5 labels an image on average', 'quoted'),
    Sentence('4.2', f'ImageNet: SGD, momentum {q.MOMENTUM}, learning rate {q.LEARNING_RATE}, times {q.DECAY_RATE} '
             f'every {q.DECAY_EPOCHS} epochs', 'reproduced'),
    Sentence('4.2', f'JFT: RMSprop, momentum {q.MOMENTUM}, learning rate {q.JFT_LEARNING_RATE}, '
             f'times {q.JFT_DECAY_RATE} every {q.JFT_DECAY_IMAGES:,} images', 'reproduced'),
    Sentence('4.2', 'all networks are evaluated with averages of their weights', 'reproduced'),
    Sentence('4.3', f'weight decay {q.WEIGHT_DECAY["Xception"]:g} for Xception, {q.WEIGHT_DECAY["Inception V3"]:g} '
             f'for Inception V3; dropout of {q.DROPOUT} before the classifier on ImageNet, none on JFT', 'reproduced'),
    Sentence('4.4', '60 K80 GPUs for each network; about 3 days on ImageNet, over 1 month on JFT, not to convergence',
             'quoted'),
    Sentence('table 1', 'ImageNet, top-1 and top-5: '
             + each({name: f'{top1:.3f}, {top5:.3f}' for name, (top1, top5) in q.IMAGENET.items()}), 'quoted'),
    Sentence('table 2', 'JFT, MAP@100 without and with fully connected layers: '
             + each({name: f'{plain:.2f}, {fc:.2f}' for name, (plain, fc) in q.JFT.items()}), 'quoted'),
    Sentence('4.5.1', f'{q.JFT_GAIN:.1%} better than Inception V3 on JFT, relatively', 'quoted'),
    Sentence('figures 6, 7, 8', 'Xception ends above Inception V3, on ImageNet and on JFT', 'read from a curve'),
    Sentence('table 3', 'parameters: ' + each({name: f'{count:,}' for name, count in q.PARAMETERS.items()}),
             'counted', tuple(f'table 3: parameters of {name}' for name in q.PARAMETERS)),
    Sentence('4.5.2', f'the two are of the same size within {q.SIZE_DIFFERENCE:.1%}',
             'counted', ('section 4.5.2: difference in size',)),
    Sentence('table 3', 'training steps per second: '
             + each({name: str(steps) for name, steps in q.STEPS_PER_SECOND.items()}), 'small scale'),
    Sentence('4.6, figure 9', 'residual connections are essential for this network, in speed and in accuracy',
             'small scale'),
    Sentence('4.6', 'a network like VGG of separable convolutions, without residual connections, beats Inception V3 '
             'on JFT', 'quoted'),
    Sentence('4.7, figure 10', 'no activation between the two operations is best', 'small scale'),
    Sentence('figure 10', 'ReLU between the two operations is better than ELU', 'read from a curve'),
]
# fmt: on
