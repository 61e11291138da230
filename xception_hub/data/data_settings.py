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
    """Labelled images: a dataset on the Hub, a folder with one folder of images per class or with metadata files, a
    table (.csv, .tsv, .xlsx, .json, .jsonl, .parquet) of paths or images, a quoted pattern for several tables, a folder
    of them, or what `save_to_disk` wrote. In Python also a table of pandas, Arrow or `datasets`."""
    dataset_config: str | None = None
    """Configuration of the dataset on the Hub. Needed if it has several."""
    image_column: str | None = None
    """Column with the images or their paths. By default it is detected from its type, then from its name."""
    label_column: str | None = None
    """Column with the labels. By default it is detected from its type, then from its name. A cell with a list gives its
    image any number of classes. Several names, separated by commas, are columns of 0 and 1, one per class."""
    image_folder: Path | None = None
    """Folder of the images that a table lists. By default the folder of the table."""
    train_split: str = 'train'
    """Split with the training images."""
    validation_split: str | None = None
    """Split with the validation images. By default it is the dataset's own (validation, val, valid, dev or test). If
    there is none, or for "", it is a stratified share of the training split."""
    group_column: str | None = None
    """Column of what several images have in common, such as the patient. A share for validation never separates images
    of one group. "" turns it off. By default it is detected from its name (patient, subject, lesion_id, ...)."""
    repeated_images: Literal['labels', 'rows'] | None = None
    """Meaning of rows with the same image. labels: one image with the labels of all its rows; rows: separate examples.
    By default equal rows count once, and different labels stop the run."""
    validation_table: str | None = None
    """Separate table or folder with the validation images."""
    validation_share: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.2
    """Share of the training images held out for validation if the dataset has no validation split."""
    fold: str | None = None
    """Fold for validation; all other folds are for training. A number from 1 to --folds; without --folds, the name of a
    split: a value of the split column, or a folder."""
    folds: Annotated[int | None, Parameter(validator=Number(gte=2))] = None
    """Number of folds of a cross-validation, into which the training images are divided by classes and groups."""
    split_column: str | None = None
    """Column of a table with the split of each row. "" turns it off. By default it is detected from its name, then its
    values."""
    label_separator: str | None = None
    """Separator of several labels in one cell, such as " " or ","; "" if each cell is one label."""
    folders: Literal['splits', 'outer', 'inner', 'path', 'metadata'] | None = None
    """How to read folders that can be read in two ways. splits: folders named like splits are splits. outer: the
    outermost folders are classes. inner: the folders that contain images are classes, and equal names are one class.
    path: these folders are classes, named by their paths. metadata: the metadata files list images and labels."""
    table_encoding: str | None = None
    """Encoding of a text table, such as cp1252. By default UTF-8, or the UTF-16 that its first bytes declare."""
    blank_label: Literal['no', 'skip'] | None = None
    """Meaning of an empty cell in columns of 0 and 1. no: the image is not of the class. skip: the row is left
    aside."""
    uncertain: Literal['yes', 'no', 'skip'] | None = None
    """Meaning of -1 beside 0 and 1. yes: the image is of the class. no: it is not. skip: the row is left aside."""
    unlabelled: Literal['error', 'skip', 'class'] = 'error'
    """How to treat rows without a label, or with -1 besides 0, 1, ...: error stops, skip leaves them out, class makes
    -1 a class."""
    empty_classes: Literal['error', 'skip'] = 'error'
    """How to treat class folders without a readable image: error stops, skip leaves them out."""
    grey_maximum: Annotated[int | None, AT_LEAST_1] = None
    """Value that is white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16. By default 65535, if
    images use at least a quarter of these values."""
    streaming: bool = False
    """Read images in the order of the dataset, through a shuffle buffer, instead of copying the dataset first."""
    bad_images: Literal['error', 'skip'] = 'error'
    """How to treat images that cannot be decoded: error stops, skip leaves them out. Each one is reported."""
    max_train_samples: Annotated[int | None, AT_LEAST_1] = None
    """Largest number of training images, drawn at random after the validation split. By default all of them."""
    scan: bool = True
    """Decode every image once before training. Without the scan, training stops at the first bad image."""
