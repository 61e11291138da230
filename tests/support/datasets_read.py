"""A dataset read with some settings."""

from os import PathLike
from typing import Any

from xception_hub.data.data_settings import DataSettings
from xception_hub.data.labelled import Data
from xception_hub.data.labelled import load as load_settings


def load(dataset: str | PathLike[str], evaluation: bool = False, **settings: Any) -> Data:
    """As finetune.py reads it with these options."""
    return load_settings(DataSettings(dataset=dataset, **settings), evaluation)
