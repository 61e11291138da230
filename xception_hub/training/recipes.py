"""The recipes of finetune.py: values of its settings, which the command line and a YAML file replace."""
from typing import Any

__all__ = ['RECIPES']


def probe() -> dict[str, Any]:
    """Trains a new classifier on the features of the frozen network, which are computed once and kept."""
    return dict(epochs=100, batch_size=64, optimizer='adamw', learning_rate=3e-3, weight_decay=1e-2,
                schedule='cosine')


def transfer() -> dict[str, Any]:
    """Keras' transfer-learning guide: the classifier first, then everything at a small rate, BN in inference mode."""
    return dict(head_epochs=100, epochs=10, batch_size=32, optimizer='adam', learning_rate=1e-5, schedule='constant',
                drop_rate=0.2, batch_norm='frozen', crop_scale=(0.8, 1.), flip=0.5)


def full() -> dict[str, Any]:
    """Everything from the start, as convolutional networks are fine-tuned today."""
    return dict(epochs=50, batch_size=32, optimizer='adamw', learning_rate=5e-4, weight_decay=0.05, layer_decay=0.75,
                schedule='cosine', warmup_epochs=5, clip_grad=1., drop_rate=0.2, drop_path_rate=0.1, batch_norm='train',
                crop_scale=(0.35, 1.), flip=0.5, auto_augment='rand-m7-mstd0.5-inc1', mixup=0.2, label_smoothing=0.1,
                ema_decay=0.999)


def paper_imagenet() -> dict[str, Any]:
    """The paper's training on ImageNet, from scratch.

    Stated there: SGD, momentum, rate and its decay, weight decay, dropout, Polyak averaging. Not stated, and chosen
    here: batch size, number of epochs, augmentation (that of Inception, without distorted colours) and the decay of the
    averages.
    """
    return dict(pretrained=False, epochs=100, batch_size=32, optimizer='sgd', momentum=0.9, learning_rate=0.045,
                schedule='step', decay_rate=0.94, decay_epochs=2., weight_decay=1e-5, drop_rate=0.5, ema_decay=0.9999,
                batch_norm='train', crop_scale=(0.08, 1.), flip=0.5)


def paper_jft() -> dict[str, Any]:
    """The paper's training on JFT, from scratch, for images of several labels; see `paper_imagenet`."""
    return dict(pretrained=False, epochs=10, batch_size=32, optimizer='rmsproptf', momentum=0.9, learning_rate=0.001,
                schedule='step', decay_rate=0.9, decay_images=3_000_000, weight_decay=1e-5, drop_rate=0.,
                ema_decay=0.9999, batch_norm='train', crop_scale=(0.08, 1.), flip=0.5)


RECIPES = {'probe': probe, 'transfer': transfer, 'full': full, 'paper-imagenet': paper_imagenet, 'paper-jft': paper_jft}
