"""The recipes of finetune.py: values of its settings, which the command line and a YAML file replace.

Each recipe names its command and the result of that command on an x86-64 machine with 2 cores. The dataset `kitchen` is
written by `python examples/kitchen_photos.py kitchen`, and `digits` by `python examples/handwritten_digits.py digits`.

probe: Trains a new classifier on features of the frozen network. The features are computed once and cached.

        accelerate launch finetune.py --recipe probe --dataset kitchen --image-size 150 --validation-share 0.5
        accelerate launch finetune.py --recipe probe --dataset digits --image-size 96

    With the weights of Keras, 9 of 9 photos of kitchenware are right after training on nine others (12 s), and 97.5 %
    of 359 handwritten digits after training on 1,438 others (67 s; one epoch instead of 100 takes 44 s).

transfer: Trains the classifier, then all layers slowly with frozen BN statistics, as in Keras' transfer-learning guide.

        accelerate launch finetune.py --recipe transfer --dataset kitchen --image-size 150 --validation-share 0.5

    8 of 9 photos are right after training on nine others (31 s); their cross-entropy falls from 0.76 to 0.17. With so
    few images, use probe. On cats and dogs, the guide reports .9712 after its first phase and .9845 after its second.

full: Trains all layers from the start, as convolutional networks are fine-tuned today.

        accelerate launch finetune.py --recipe full --dataset digits --model test_resnet --no-pretrained --image-size 32
            --epochs 20 --batch-size 16 --learning-rate 3e-3 --flip 0

    99.4 % of 359 handwritten digits are right after training on 1,438 others, in 101 s. The recipe is made for
    thousands of images: after 20 epochs on nine photos, the pretrained network has 7 of nine others right.

paper-imagenet: Trains from scratch as the paper does on ImageNet.

        accelerate launch finetune.py --recipe paper-imagenet --dataset digits --model test_resnet --image-size 32
            --epochs 20 --batch-size 16 --flip 0

    99.2 % of 359 handwritten digits are right after training on 1,438 others, with a network of 0.5 million parameters.
    The recipe was not run on ImageNet; the paper reports .790 top-1 there. The paper states SGD, momentum, learning
    rate and its decay, weight decay, dropout and Polyak averaging. It does not state batch size, number of epochs,
    augmentation (Inception's crops and flips) and the decay of the averages; this project has chosen them.

paper-jft: Trains from scratch as the paper does on JFT, whose images have several labels; see `paper-imagenet`.

        accelerate launch finetune.py --recipe paper-jft --dataset digits --model test_resnet --image-size 32
            --epochs 20 --batch-size 16 --flip 0

    99.2 % of 359 handwritten digits are right after training on 1,438 others. JFT is not public. The paper states
    neither the other constants of RMSprop (timm's) nor the loss (the binary cross-entropy of each class).
"""

from typing import Any

PAPER = dict(  # what the trainings of the paper have in common
    pretrained=False,
    schedule='step',
    weight_decay=1e-5,
    ema_decay=0.9999,
    batch_norm='train',
    precise_bn_images=8192,
    crop_scale=(0.08, 1.0),
    flip=0.5,
)
# Recipe -> the settings whose values are not the defaults of `settings.Settings`.
RECIPES: dict[str, dict[str, Any]] = {
    'probe': dict(epochs=100, batch_size=64, learning_rate=3e-3, weight_decay=1e-2),
    'transfer': dict(
        optimizer='adam', learning_rate=1e-5, schedule='constant', drop_rate=0.2, crop_scale=(0.8, 1.0), flip=0.5
    ),
    'full': dict(
        epochs=50,
        learning_rate=5e-4,
        weight_decay=0.05,
        layer_decay=0.75,
        warmup_epochs=5,
        clip_grad=1.0,
        drop_rate=0.2,
        drop_path_rate=0.1,
        batch_norm='train',
        crop_scale=(0.35, 1.0),
        flip=0.5,
        auto_augment='rand-m7-mstd0.5-inc1',
        mixup=0.2,
        label_smoothing=0.1,
        ema_decay=0.999,
    ),
    'paper-imagenet': dict(
        PAPER, epochs=100, optimizer='sgd', learning_rate=0.045, decay_rate=0.94, decay_epochs=2.0, drop_rate=0.5
    ),
    'paper-jft': dict(PAPER, optimizer='rmsproptf', decay_rate=0.9, decay_images=3_000_000),
}
