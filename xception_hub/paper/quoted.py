"""What the paper states, as data.

Source: François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357v3. The last
two tables are published by Keras and timm, not by the paper.
"""

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

JFT_GAIN = 0.043  # section 4.5.1, with fully connected layers

# Section 4.2. The optimizers' other constants, the loss on JFT and the size of a batch are not stated
MOMENTUM = 0.9  # of both
LEARNING_RATE, DECAY_RATE, DECAY_EPOCHS = 0.045, 0.94, 2  # ImageNet: SGD
JFT_LEARNING_RATE, JFT_DECAY_RATE, JFT_DECAY_IMAGES = 0.001, 0.9, 3_000_000  # JFT: RMSprop

# Section 4.3
WEIGHT_DECAY = {'Xception': 1e-5, 'Inception V3': 4e-5}
DROPOUT = 0.5  # on ImageNet; none on JFT

# Published by Keras (keras.applications, "Total params") and timm (results/, GMACs at 299 pixels), not by the paper
KERAS_TOTAL = {'Xception': 22_910_480, 'Inception V3': 23_851_784}
TIMM_GMACS = {'Xception': 8.4, 'Inception V3': 5.7}
