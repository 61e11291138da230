"""Xception of arXiv:1610.02357 for timm, exactly as Keras computes it.

Importing this package registers the models, so that `timm.create_model('xception_paper', pretrained=True)` knows them.
"""

import importlib
from typing import Any

from . import interrupt as _interrupt  # noqa: F401  first: what follows takes seconds
from . import xception_paper as _registered  # noqa: F401
from .errors import CheckpointError, WeightsError
from .images import open_image
from .network import Xception
from .weights.checkpoints import from_checkpoint
from .weights.fingerprints import Verification
from .weights.sources import verify

__all__ = [
    'CheckpointError',
    'Predictor',
    'Verification',
    'WeightsError',
    'Xception',
    'from_checkpoint',
    'open_image',
    'optimize',
    'verify',
]
__version__ = '0.2.0'

# name -> its module, which is imported when it is used
LAZY = {'Predictor': '.inference.predictor', 'optimize': '.inference.optimize'}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(LAZY[name], __name__), name)
