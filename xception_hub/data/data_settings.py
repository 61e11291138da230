"""What can be asked of the data: the part of a run's settings that `labelled.load` takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

AT_LEAST_1 = Parameter(validator=Number(gte=1))


@Parameter(name='*', group=Group('Data', sort_key=1), negative_iterable='')
@dataclass(frozen=True, kw_only=True)
class DataSettings:
    dataset: Annotated[Any, Parameter(converter=lambda _, tokens: tokens[0].value)]
    """Dataset to learn from: a name on the Hub, or a path. The path is a folder with a folder of images for each class,
    or with metadata files; a table (.csv, .tsv, .xlsx, .json, .jsonl, .parquet) with a column of paths or images,
    several as a pattern in quotes, or a folder of them; or what `save_to_disk` wrote. From Python also a table itself:
    of pandas, of Arrow or of `datasets`."""
    dataset_config: str | None = None
    """Configuration of a dataset on the Hub that has several. By default the only one."""
    image_column: str | None = None
    """Column with the images or their paths. By default it is found by type, then by name."""
    label_column: str | None = None
    """Column with the labels. By default it is found by type, then by name. Lists of labels mean that an image has any
    number of classes (multi-label). Names with commas between them are columns of 0 and 1, for a class each."""
    image_folder: Path | None = None
    """Folder of the images that a table names. By default the table's own."""
    train_split: str = 'train'
    """Split with the training images."""
    validation_split: str | None = None
    """Split with the validation images. By default the dataset's own (validation, val, valid, dev or test), else a
    stratified share of the training split; "" for a share in any case."""
    group_column: str | None = None
    """Column of what several images have in common, such as the patient: a share for validation does not cut through
    it. "" for none. By default it is found by its name (patient, subject, lesion_id, ...)."""
    repeated_images: Literal['labels', 'rows'] | None = None
    """What rows of a table with the same image and different labels are. labels: the labels of one image, which has any
    number of classes; rows: examples of their own."""
    validation_table: str | None = None
    """Table or folder with the validation images, apart from the dataset's."""
    validation_share: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.2
    """Share of the training images held out for validation, where the dataset has no validation split."""
    fold: str | None = None
    """Fold that validates; all others are for training. A number from 1 to --folds; without that, the name of a split:
    a value of the split column, or a folder."""
    folds: Annotated[int | None, Parameter(validator=Number(gte=2))] = None
    """Number of folds that the training images are divided into, by classes and groups, for a cross-validation."""
    split_column: str | None = None
    """Column of a table with the split of each row; "" for none. By default it is found by its name and its values."""
    label_separator: str | None = None
    """Text between the labels of an image in one text, such as " " or ","; "" if such texts are single labels."""
    folders: Literal['splits', 'outer', 'inner', 'path', 'metadata'] | None = None
    """What the folders in a folder are, where two readings are possible. splits: those with names of splits are splits.
    Else folders are classes: outer: the first ones, whatever is in them; inner: those that hold images, of which equal
    names are one class; path: the same, each by its path. metadata: images and labels are those of the metadata
    files."""
    table_encoding: str | None = None
    """Encoding of a table of texts, such as cp1252. By default UTF-8, or the UTF-16 that its first bytes declare."""
    blank_label: Literal['no', 'skip'] | None = None
    """What an empty cell in columns of 0 and 1 means: that the image is not of the class, or that its row is left
    aside."""
    uncertain: Literal['yes', 'no', 'skip'] | None = None
    """What -1 beside 0 and 1 means in columns of classes: that the image is of the class, that it is not, or that its
    row is left aside."""
    unlabelled: Literal['error', 'skip', 'class'] = 'error'
    """What to do with rows without a label, or with -1 beside 0, 1, ...: stop with an error, or leave them aside;
    class: -1 is a class of its own."""
    empty_classes: Literal['error', 'skip'] = 'error'
    """What to do with folders of classes without an image that can be read: stop with an error, or leave them out."""
    grey_maximum: Annotated[int | None, AT_LEAST_1] = None
    """Value that is white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16. By default 65535, if
    images use at least a quarter of these values."""
    streaming: bool = False
    """Read images in the order of the dataset, through a buffer that shuffles them, without copying the dataset
    first."""
    bad_images: Literal['error', 'skip'] = 'error'
    """What to do with images that cannot be decoded: stop with an error, or skip them. They are named in any case, and
    never silently replaced."""
    max_train_samples: Annotated[int | None, AT_LEAST_1] = None
    """Largest number of training images, drawn at random after the validation split. By default all of them."""
    scan: bool = True
    """Decode every image once before training. Without the scan, a bad image ends the run when it is met."""
