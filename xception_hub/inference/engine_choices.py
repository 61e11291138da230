"""Cache of the fastest engine for each model on this machine, in a JSON file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import cached_assets_path

from ..files import write_text
from ..timing import device_model
from .check import Reference
from .engines import ENGINES

FILE = 'engines.json'


def default_file() -> Path:
    """Path of the file in the cache of the Hugging Face libraries."""
    return cached_assets_path('xception_hub', namespace='optimize') / FILE


def key_of(reference: Reference) -> str:
    """Key of everything that speed depends on: layers, but not weights; the shape of images; ..."""
    parts = dict(
        device=device_model(reference.example.device),
        versions=[f'torch {torch.__version__}', f'timm {timm.__version__}', *(e.version() for e in ENGINES.values())],
        layers=hashlib.sha256(repr(reference.model).encode()).hexdigest(),
        shape=list(reference.example.shape),
        precision=reference.precision,
    )
    return json.dumps(parts)


def read(file: Path | None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns the choice for each key, `engine` and `seconds`; and the reason if the file cannot be read.

    If the choices are lost, the engines are measured again. None stands for `default_file()`.
    """
    try:
        known = json.loads((file or default_file()).read_text(encoding='utf-8'))
        return {key: entry for key, entry in known.items() if entry['engine'] in entry['seconds']}, []
    except FileNotFoundError:
        return {}, []
    except OSError as e:
        return {}, [f'Choices cannot be read ({e}).']
    except (ValueError, AttributeError, TypeError, KeyError):
        return {}, [f'{file or FILE} is damaged and is replaced.']


def write(file: Path | None, choices: dict[str, dict[str, Any]]) -> list[str]:
    """Writes the choices. Returns the reason if that is not possible."""
    try:
        write_text(file or default_file(), json.dumps(choices, indent=2))
    except OSError as e:
        return [f'The choice cannot be saved ({e}).']
    return []
