"""A dataset read with some settings, and its labels."""

from os import PathLike
from typing import Any

from xception_hub.data.data_settings import DataSettings
from xception_hub.data.labelled import Data
from xception_hub.data.labelled import load as load_settings


def load(dataset: str | PathLike[str], evaluation: bool = False, **settings: Any) -> Data:
    """As finetune.py reads it with these options."""
    return load_settings(DataSettings(dataset=dataset, **settings), evaluation)


def labels_of(data: Data) -> list[str]:
    """The label of each training image; several with + between them, . for none."""
    if data.multi_label:
        rows = [[name for name, there in zip(data.class_names, row) if there] for row in data.train.labels]
        return ['+'.join(names) or '.' for names in rows]
    return [data.class_names[label] for label in data.train.labels]
