"""Names of splits: train, Training, seg_train, train_images and train2017 mean the same."""

import re

# Word in the name of a folder -> the split that it means.
SPLIT_WORDS = {
    **dict.fromkeys(('train', 'training', 'trainset', 'trn'), 'train'),
    **dict.fromkeys(('validation', 'val', 'valid', 'validate', 'dev', 'eval', 'evaluation'), 'validation'),
    **dict.fromkeys(('test', 'testing', 'testset', 'tst'), 'test'),
    **dict.fromkeys(('pred', 'predict', 'prediction', 'unlabeled', 'unlabelled'), 'prediction'),
}
# Words that may stand beside it: seg_train, train_images, val2017, Training-Set.
AFFIXES = {'', 'seg', 'set', 'data', 'dataset', 'image', 'images', 'img', 'imgs', 'photos', 'split', 'final', 'new'}


def split_of(name: str) -> str | None:
    """The split that a name means, in any case and with usual words around it; None if it means none."""
    words = re.split(r'[\W_]+', re.sub(r'\d+', ' ', name.lower()))
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    rest = {word for word in words if word not in SPLIT_WORDS}
    return found.pop() if len(found) == 1 and rest <= AFFIXES else None
