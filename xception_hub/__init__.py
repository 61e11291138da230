"""Xception of arXiv:1610.02357 for timm, exactly as Keras computes it.

Importing this package registers the models, so that `timm.create_model('xception_paper', pretrained=True)` knows them.
"""

from . import xception_paper as _registered  # noqa: F401
from .errors import CheckpointError, WeightsError
from .images import open_image
from .network import Xception
from .weights.checkpoints import from_checkpoint
from .weights.fingerprints import Verification
from .weights.sources import verify

__all__ = ['CheckpointError', 'Verification', 'WeightsError', 'Xception', 'from_checkpoint', 'open_image', 'verify']
__version__ = '0.2.0'
