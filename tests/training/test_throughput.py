"""The speed of input and network, and which of them binds."""

import itertools
import time
from collections.abc import Iterator

import pytest
import torch

from xception_hub.training.batches import Batch
from xception_hub.training.throughput import Throughput


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
