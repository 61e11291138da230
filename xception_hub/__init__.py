"""Xception of arXiv:1610.02357 for timm, exactly as Keras computes it.

Importing this package registers the models, so that `timm.create_model('xception_paper', pretrained=True)` knows them.
"""

from . import xception_variants
from .checkpoints import CheckpointError, from_checkpoint
from .fingerprints import Verification
from .sources import WeightsError, verify
from .xception_paper import Xception

__all__ = [
    'CheckpointError',
    'Verification',
    'WeightsError',
    'Xception',
    'from_checkpoint',
    'verify',
    'xception_variants',
]
__version__ = '0.1.0'
