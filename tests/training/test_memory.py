"""What a step costs: bytes that can be counted by hand, and seconds that are told apart."""

import itertools
import time
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from random_model import images
from torch import Tensor, nn

from xception_hub.training.batches import Batch
from xception_hub.training.memory import Footprint, measure
from xception_hub.training.throughput import Throughput

FLOAT = 4  # bytes


def squares(module: nn.Module, batch: Tensor) -> Callable[[], Tensor]:
    return lambda: module(batch).square().sum()


# Memory


def test_every_byte() -> None:
    """Of a network whose tensors are known; the moving averages of Adam, and the count of its updates."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    trained = 3 * 8 * 9 + 2 * 8 + 8 * 16 * 5 + 5
    buffers = 2 * 8 * FLOAT + 8  # two moving statistics, and the number of batches in 64 bits
    optimizer = torch.optim.Adam(model.parameters())
    loss = squares(model, images(6, 6, batch=2))
    expected = loss().item()
    found = measure(model, optimizer, loss, 2)
    assert (found.weights, found.gradients) == (FLOAT * trained + buffers, FLOAT * trained)
    assert found.optimizer == 2 * FLOAT * trained + 5 * FLOAT
    # kept for the backward pass: the images, what BatchNorm takes, its statistics, what comes out of the sigmoid, which
    # the linear layer shares, and what is squared
    assert found.activations == FLOAT * (2 * 3 * 36 + 2 * 8 * 16 + 2 * 8 + 2 * 8 * 16 + 2 * 5)
    assert (found.batch_size, found.loss) == (2, pytest.approx(expected))
    assert found.total() == found.weights + found.gradients + found.optimizer + found.activations
    assert found.total(averages=True) == found.total() + found.weights
    assert all(parameter.grad is None for parameter in model.parameters())


def test_optimizers_without_state() -> None:
    model = nn.Linear(10, 4)
    batch = torch.ones(2, 10)
    assert measure(model, torch.optim.SGD(model.parameters(), lr=0.1), squares(model, batch), 2).optimizer == 0
    momentum = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert measure(model, momentum, squares(model, batch), 2).optimizer == FLOAT * 44


def test_frozen_weights() -> None:
    """Have no gradients and no state."""
    model = nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 4))
    model[0].requires_grad_(False)
    found = measure(model, torch.optim.Adam(model.parameters()), squares(model, torch.ones(2, 10)), 2)
    assert (found.weights, found.gradients) == (FLOAT * (66 + 28), FLOAT * 28)
    assert found.optimizer == 2 * FLOAT * 28 + 2 * FLOAT


def test_the_batch_counts_and_the_rest_does_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3), nn.Sigmoid())
    one, four = (
        measure(model, torch.optim.AdamW(model.parameters()), squares(model, images(12, 12, batch=size)), size)
        for size in (1, 4)
    )
    assert 4 * one.activations == four.activations
    assert (one.weights, one.gradients, one.optimizer) == (four.weights, four.gradients, four.optimizer)


def test_gradient_checkpointing() -> None:
    """Xception then keeps little more than what goes into each module."""

    def footprint(checkpointing: bool) -> Footprint:
        torch.manual_seed(0)
        model = timm.create_model('xception_paper', num_classes=3)
        model.set_grad_checkpointing(checkpointing)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return measure(model.train(), optimizer, squares(model, images(71, 71, batch=2)), 2)

    whole, less = footprint(False), footprint(True)
    assert less.activations < 0.4 * whole.activations
    assert less.loss == pytest.approx(whole.loss, rel=1e-4)
    assert (less.weights, less.gradients, less.optimizer) == (whole.weights, whole.gradients, 0)
    assert whole.gradients == sum(
        FLOAT * parameter.numel()
        for parameter in timm.create_model('xception_paper', num_classes=3, device='meta').parameters()
    )


def test_text_of_a_footprint() -> None:
    assert str(Footprint(83_000_000, 5_400_000, 0, 999_600_000, 8, 1.0)) == (
        'weights 83 MB, gradients 5 MB, optimizer 0 MB, activations 1000 MB'
    )


# Throughput


def batches(count: int, images: int, making: float, waiting: float) -> Iterator[Batch]:
    """Which take some time to be made, partly by workers."""
    for _ in range(count):
        time.sleep(waiting)
        yield Batch(torch.zeros(images, 3), torch.zeros(images), torch.zeros(images), torch.ones(images), making)


@pytest.mark.parametrize('slow', ['input', 'network'])
def test_the_slower_one_binds(slow: str) -> None:
    throughput = Throughput(workers=2, processes=3)
    making = 0.2 if slow == 'input' else 0.01
    for batch in throughput.timed(batches(3, 4, making, 0.02)):
        assert len(batch.inputs) == 4
        time.sleep(0.03)
    assert throughput.images == 12
    assert throughput.input == pytest.approx(3 * 2 * 4 / making)
    assert throughput.model is not None and throughput.waiting >= 0.06
    assert 3 * 4 / 0.06 < throughput.model <= 3 * 4 / 0.03
    assert (
        str(throughput)
        == f'network {throughput.model:.1f} images/s, input {throughput.input:.1f} images/s, {slow} is the bottleneck'
    )


def test_pace_of_what_is_kept() -> None:
    """Features from a cache cost nothing to make; no batches have no throughput."""
    assert (str(Throughput(0)), Throughput(0).model, Throughput(0).input) == ('', None, None)
    throughput = Throughput(0)
    list(throughput.timed(batches(2, 4, 0.0, 0.0)))
    assert throughput.input is None
    assert str(throughput) == f'network {throughput.model:.1f} images/s'


def test_pace_of_some_batches() -> None:
    """What is asked for no longer has a throughput as well."""
    throughput = Throughput(0)
    feed = throughput.timed(batches(9, 2, 0.1, 0.0))
    assert len(list(itertools.islice(feed, 3))) == 3
    time.sleep(0.02)
    feed.close()
    assert throughput.images == 6 and throughput.elapsed >= 0.02
    assert throughput.model is not None
