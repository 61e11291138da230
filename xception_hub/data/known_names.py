"""What names of splits and of columns mean, in any case and with usual words around them."""

import re
from collections.abc import Iterable, Sequence

# Word in the name of a folder or a column's value -> the split that it means.
SPLIT_WORDS = {
    **dict.fromkeys(('train', 'training', 'trainset', 'trn'), 'train'),
    **dict.fromkeys(('validation', 'val', 'valid', 'validate', 'dev', 'eval', 'evaluation'), 'validation'),
    **dict.fromkeys(('test', 'testing', 'testset', 'tst'), 'test'),
    **dict.fromkeys(('pred', 'predict', 'prediction', 'unlabeled', 'unlabelled'), 'prediction'),
}
# Words that may stand beside it: seg_train, train_images, val2017, Training-Set.
AFFIXES = {'', 'seg', 'set', 'data', 'dataset', 'image', 'images', 'img', 'imgs', 'photos', 'split', 'final', 'new'}
VALIDATION_SPLITS = ('validation', 'val', 'valid', 'dev', 'test')

IMAGE_COLUMNS = (
    'image', 'img', 'file_name', 'filename', 'file', 'path', 'image_path', 'img_path', 'file_path', 'filepath',
    'filepaths', 'image_name', 'img_name', 'image_file', 'image_id', 'id_code', 'fname', 'images',
)  # fmt: skip
LABEL_COLUMNS = (
    'label', 'labels', 'class', 'class_name', 'category', 'target', 'fine_label', 'classes', 'tags', 'class_id',
    'label_name', 'diagnosis', 'cls', 'dx', 'choice',
)  # fmt: skip
SPLIT_COLUMNS = (
    'split', 'set', 'subset', 'partition', 'fold', 'usage', 'data_set', 'dataset', 'phase', 'kfold', 'k_fold', 'stage',
)  # fmt: skip
# Columns of yes and no, as fastai's is_valid: the split of False and that of True.
SPLIT_FLAGS = {
    **dict.fromkeys(('is_valid', 'is_val', 'is_validation'), ('train', 'validation')),
    'is_test': ('train', 'test'),
    'is_train': ('validation', 'train'),
}
UNCLEAR_FLAGS = ('is_valid',)  # a row that is valid may be a row in order, too
# Columns of what images have in common beside their class: their split must not cut through it.
GROUP_COLUMNS = (
    'group', 'group_id', 'patient', 'patient_id', 'patientid', 'subject', 'subject_id', 'lesion_id', 'case_id',
    'person_id', 'individual_id', 'animal_id', 'site', 'site_id', 'location', 'camera', 'camera_id', 'scene_id',
)  # fmt: skip
UNCLEAR_GROUPS = GROUP_COLUMNS[12:]  # a site may be a hospital, and may be a part of the body


def split_of(name: str) -> str | None:
    """The split that a name means, with usual words around it: train for seg_train; None if it means none."""
    words = re.split(r'[\W_]+', re.sub(r'\d+', ' ', name.lower()))
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    rest = {word for word in words if word not in SPLIT_WORDS}
    return found.pop() if len(found) == 1 and rest <= AFFIXES else None


def plain(name: str) -> str:
    """A column's name in small letters, with underscores for blanks and hyphens."""
    return re.sub(r'[\s-]+', '_', name.strip().lower())


def by_name(columns: Iterable[str], known: Sequence[str]) -> str | None:
    """The column of the first known name."""
    found = {plain(name): name for name in reversed(list(columns))}
    return next((found[name] for name in known if name in found), None)
