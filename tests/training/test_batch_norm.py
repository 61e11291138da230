"""Precise BN: a network is evaluated with the statistics that belong to its weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from finetuning import SMALL, finetune
from handwritten_digits import handwritten_digits
from torch import Tensor, nn

from xception_hub.images import open_image
from xception_hub.models.build import Transforms
from xception_hub.training.batch_norm import recompute
from xception_hub.training.processes import Machine

# Averaged weights of few, large updates: moving statistics are far from them. Nothing is augmented.
TRAINING = (
    *(*SMALL, '--recipe', 'paper-imagenet', '--crop-scale', 1, 1, '--flip', 0, '--no-scan', '--drop-rate', 0),
    *('--epochs', 1, '--learning-rate', 0.1, '--ema-decay', 0.9),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images for training, and some for validation."""
    folder = tmp_path_factory.mktemp('data')
    for split, count in (('train', 8), ('val', 1)):
        handwritten_digits(folder / split, per_class=count, classes=6)
    return folder


def trained(output: Path, folder: Path, *arguments: Any, images: int = 48, processes: int = 1) -> nn.Module:
    given = (*TRAINING, '--precise-bn-images', images, *arguments, '--dataset', folder, '--output', output)
    finetune(*given, log=output.with_suffix('.log'), processes=processes)
    return timm.create_model(f'local-dir:{output}', pretrained=True)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if 'running' in name}


def momentum_of_one(model: nn.Module) -> nn.Module:
    """The network in training mode; its statistics become those of the next batch."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    return model.train()


@pytest.mark.slow
def test_averaged_weights(folder: Path, tmp_path: Path) -> None:
    """They come with the statistics of the training images under these weights; moving ones are others."""
    transform = None
    for name, number in (('precise', 48), ('moving', 0)):
        model = trained(tmp_path / name, folder, '--batch-size', 48, images=number)
        transform = transform or Transforms(model, 32).training((1.0, 1.0), hflip=0, color_jitter=0)
        found = statistics(model)
        images = [transform(open_image(path)) for path in sorted((folder / 'train').rglob('*.png'))]
        momentum_of_one(model)(torch.stack(images))
        close = [torch.allclose(found[key], value, rtol=1e-3, atol=1e-5) for key, value in statistics(model).items()]
        assert all(close) == (name == 'precise')


@pytest.mark.slow
def test_two_processes_have_the_same(folder: Path, tmp_path: Path) -> None:
    """The means over the batches of both, which are those of one process that accumulates."""
    one = trained(tmp_path / 'one', folder, '--batch-size', 12, '--accumulation', 2)
    two = trained(tmp_path / 'two', folder, '--batch-size', 12, processes=2)
    for name, expected in statistics(one).items():
        assert torch.allclose(statistics(two)[name], expected, rtol=1e-3, atol=1e-5), name


def test_recompute() -> None:
    """Means over batches, whatever the statistics were; modes and momenta stay."""
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 32, 32) + number for number in range(3)]
    model = timm.create_model('test_resnet')
    expected = []
    for batch in batches:
        momentum_of_one(model)(batch)
        expected.append(statistics(model))
    model.eval()
    momenta = [layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    model.layer1.train()
    modes = [layer.training for layer in model.modules()]
    recompute(model, batches, Machine(cpu=True))
    assert [layer.training for layer in model.modules()] == modes
    assert [layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)] == momenta
    for name, found in statistics(model).items():
        assert torch.allclose(found, torch.stack([of[name] for of in expected]).mean(0), rtol=1e-4, atol=1e-6), name
