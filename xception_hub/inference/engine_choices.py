"""What was chosen on this machine, remembered in a JSON file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import cached_assets_path
from torch import Tensor, nn

from ..files import write_text
from ..timing import device_model
from .engines import ENGINES

FILE = 'engines.json'


def default_file() -> Path:
    """A file in the cache of the Hugging Face libraries."""
    return cached_assets_path('xception_hub', namespace='optimize') / FILE


def key_of(model: nn.Module, example: Tensor, precision: str) -> str:
    """A text that is the same for two models if all is that speed depends on: not their weights, but their layers."""
    parts = dict(
        device=device_model(example.device),
        versions=[f'torch {torch.__version__}', f'timm {timm.__version__}', *(e.version() for e in ENGINES.values())],
        layers=hashlib.sha256(repr(model).encode()).hexdigest(),
        shape=list(example.shape),
        precision=precision,
    )
    return json.dumps(parts)


class Choices:
    """A JSON object, whose loss costs a measurement and is never an error.

    Args:
        file: The file; None for that in the cache.

    Attributes:
        notes: Why something could not be read or written.
    """

    def __init__(self, file: Path | None) -> None:
        self.notes: list[str] = []
        self._known: dict[str, Any] = {}
        try:
            self._file = file or default_file()
            known = json.loads(self._file.read_text(encoding='utf-8'))
            self._known = {key: entry for key, entry in known.items() if entry['engine'] in entry['seconds']}
        except FileNotFoundError:
            pass
        except OSError as e:
            self.notes.append(f'Choices cannot be read ({e}).')
        except (ValueError, AttributeError, TypeError, KeyError):
            self.notes.append(f'{self._file} was damaged, and is written anew.')

    def get(self, key: str) -> dict[str, Any] | None:
        """What was put there under this key."""
        return self._known.get(key)

    def put(self, key: str, engine: str, seconds: dict[str, float]) -> None:
        """Remembers a choice. The file is replaced when the new one is complete."""
        self._known[key] = {'engine': engine, 'seconds': seconds}
        try:
            write_text(self._file, json.dumps(self._known, indent=2))
        except OSError as e:
            self.notes.append(f'The choice is not remembered ({e}).')
