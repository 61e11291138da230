"""Networks with random weights that compute something: what the tests run where the genuine weights don't matter."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from xception_hub import Xception
from xception_hub.models import classifier
from xception_hub.models.build import Transforms


def images(*size: int, batch: int = 1, chans: int = 3, seed: int = 1) -> Tensor:
    """Random images [batch, chans, height, width]."""
    return torch.randn(batch, chans, *size, generator=torch.Generator().manual_seed(seed))


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def random_model(seed: int = 0, **kwargs: Any) -> Xception:
    """`xception_paper` in evaluation mode, all of whose tensors matter.

    As initialised, the activations fade away within the depth of the network and BatchNorm's tensors are ones and
    zeros: most mistakes then change nothing. So the moving statistics are those of a batch, and all four tensors of
    each BatchNorm are randomised around them.
    """
    torch.manual_seed(seed)
    model: Xception = timm.create_model('xception_paper', **kwargs)
    norms, momentum = norms_of(model), norms_of(model)[0].momentum
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.6, 1.4)
            norm.bias.normal_(std=0.3)
        model.train()(images(96, 96, batch=4, chans=model.in_chans))
        for norm in norms:
            norm.momentum = momentum
            norm.num_batches_tracked.zero_()
            norm.running_mean += torch.randn_like(norm.running_mean) * norm.running_var.sqrt() / 4
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.5)
    return model.eval()


def save_small(folder: Path, names: list[str], seed: int = 0) -> Path:
    """A directory of a narrow network for images of 48x48 pixels, as finetune.py writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(seed, num_classes=len(names), width_multiplier=0.25, min_img_size=32)
    classifier.save(folder, model, Transforms(model, 48).config, names, False)
    return folder
