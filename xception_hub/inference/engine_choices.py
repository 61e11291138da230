"""Cache of the fastest engine for each model on this machine, in a JSON file."""

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
    """Path of the file in the cache of the Hugging Face libraries."""
    return cached_assets_path('xception_hub', namespace='optimize') / FILE


def key_of(model: nn.Module, example: Tensor, precision: str) -> str:
    """Key of everything that speed depends on: layers, but not weights; the shape of `example` [B, C, H, W]; ..."""
    parts = dict(
        device=device_model(example.device),
        versions=[f'torch {torch.__version__}', f'timm {timm.__version__}', *(e.version() for e in ENGINES.values())],
        layers=hashlib.sha256(repr(model).encode()).hexdigest(),
        shape=list(example.shape),
        precision=precision,
    )
    return json.dumps(parts)


class Choices:
    """The choices in a JSON file. If the file is lost, the engines are measured again.

    Args:
        file: Path of the file; None for `default_file()`.

    Attributes:
        notes: Reasons why the file could not be read or written.
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
            self.notes.append(f'{self._file} is damaged and is replaced.')

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns the choice for a key, or None."""
        return self._known.get(key)

    def put(self, key: str, engine: str, seconds: dict[str, float]) -> None:
        """Saves a choice. The file is replaced atomically."""
        self._known[key] = {'engine': engine, 'seconds': seconds}
        try:
            write_text(self._file, json.dumps(self._known, indent=2))
        except OSError as e:
            self.notes.append(f'The choice cannot be saved ({e}).')
