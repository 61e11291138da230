"""Features of a frozen network: those that it computes, once for each image, whatever happens in between."""

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from small_images import save_pieces, split_of
from torch import Tensor, nn

from xception_hub.data.bad_images import digests
from xception_hub.data.items import Item
from xception_hub.data.labelled import Split
from xception_hub.models.build import Transforms, evaluating
from xception_hub.models.classifier import features_of, without_classifier
from xception_hub.training import features
from xception_hub.training.batches import Batching, Images, InOrder, TrainingBatches, loader
from xception_hub.training.features import FeatureCache, Features, cache_directory, context_of
from xception_hub.training.processes import Machine
from xception_hub.training.throughput import Throughput

COUNT = 21  # images, in shards of 8 and batches of 4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Computed by one thread: the last bit depends on how many there are."""
    monkeypatch.setattr(features, 'SHARD', 8)
    monkeypatch.setattr(features, 'BATCH', 4)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')  # accelerate warns without
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=3).eval()


@pytest.fixture(scope='module')
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_pieces(tmp_path_factory.mktemp('pieces'), COUNT)


class Interruption(Exception):
    """In the middle of a computation."""


class Fill:
    """A cache in a folder, filled by a network of which every call counts."""

    def __init__(self, folder: Path, model: nn.Module, context: str = 'context') -> None:
        self.folder = folder
        self.model = model
        self.cache = FeatureCache(folder, context)
        self.batches: list[int] = []
        self.seen = 0

    def __call__(self, split: Split, until: int | None = None, workers: int = 0) -> list[bytes]:
        """Fills the cache; is interrupted after a number of batches."""

        def compute(images: Tensor) -> Tensor:
            if len(self.batches) == until:
                raise Interruption
            self.batches.append(len(images))
            return features_of(self.model, images)

        def step(count: int) -> None:
            self.seen += count

        found = digests(split)
        images = Images(split, Transforms(self.model, 64).evaluation())
        with evaluating(self.model):
            machine = Machine(Accelerator(cpu=True), workers)
            self.cache.fill(images, found, compute, machine, machine.throughput(), step)
        return found


def vectors(cache: FeatureCache, found: Sequence[bytes]) -> Tensor:
    return torch.stack([cache[digest] for digest in found])


def directly(model: nn.Module, split: Split, batch_size: int) -> Tensor:
    """Without a cache."""
    images = Images(split, Transforms(model, 64).evaluation())
    with evaluating(model):
        return torch.cat([features_of(model, batch.inputs) for batch in loader(images, InOrder(split, batch_size))])


@pytest.mark.parametrize('streamed', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
def test_fill(streamed: bool, workers: int, model: nn.Module, paths: list[Path], tmp_path: Path) -> None:
    """The network's features, to the last bit those of the same batches; a second time there is nothing to do."""
    split = split_of(paths, streamed=streamed)
    fill = Fill(tmp_path, model)
    found = fill(split, workers=workers)
    assert fill.batches == [4, 4, 4, 4, 4, 1] and fill.seen == COUNT
    result = vectors(fill.cache, found)
    assert (result.shape, result.dtype) == ((COUNT, model.num_features), torch.float32)
    assert torch.equal(result, directly(model, split, batch_size=4))
    torch.testing.assert_close(result, directly(model, split, batch_size=COUNT))
    assert all(digest in fill.cache for digest in found) and bytes(32) not in fill.cache
    with pytest.raises(KeyError):
        fill.cache[bytes(32)]

    fill(split)
    again = Fill(tmp_path, model)
    again(split)
    again(split_of(paths[::-1]).select([3, 4, 9]))
    assert (len(fill.batches), again.batches, again.seen) == (6, [], 0)
    assert torch.equal(vectors(again.cache, found), result)
    assert len(list(tmp_path.rglob('*'))) == 1 + 3


@pytest.mark.parametrize('until', [0, 1, 2, 3, 5])
@pytest.mark.parametrize('streamed', [False, True])
def test_interruption(until: int, streamed: bool, model: nn.Module, paths: list[Path], tmp_path: Path) -> None:
    """What was kept is not computed again, and the bits are those of one pass."""
    split = split_of(paths, streamed=streamed)
    interrupted = Fill(tmp_path / 'cache', model)
    with pytest.raises(Interruption):
        interrupted(split, until=until)
    rest = Fill(tmp_path / 'cache', model)
    found = rest(split)
    kept = until // 2 * 2  # batches of whole shards
    assert len(rest.batches) == 6 - kept
    whole = Fill(tmp_path / 'whole', model)
    whole(split)
    assert torch.equal(vectors(rest.cache, found), vectors(whole.cache, found))


def damages() -> dict[str, Callable[[Path], Any]]:
    return {
        'removed': Path.unlink,
        'empty': lambda path: path.write_bytes(b''),
        'cut': lambda path: path.write_bytes(path.read_bytes()[:-1]),
        'text': lambda path: path.write_text('Not found'),
        'no features': lambda path: shutil.copy(path.parents[1] / 'other' / path.name, path),
    }


@pytest.mark.parametrize('kind', damages())
def test_damaged_shard(kind: str, model: nn.Module, paths: list[Path], tmp_path: Path) -> None:
    """Is removed with a warning, and computed again, alone and to the same bits."""
    split = split_of(paths)
    fill = Fill(tmp_path, model)
    found = fill(split)
    expected = vectors(fill.cache, found).clone()
    shard = sorted((tmp_path / 'context').iterdir())[1]
    size = sum(digest in shard.read_bytes() for digest in found)
    if kind == 'no features':
        features.write(tmp_path / 'other' / shard.name, {'something': {'else': torch.zeros(3)}}, {})
    damages()[kind](shard)
    if kind == 'removed':
        again = Fill(tmp_path, model)
    else:
        with pytest.warns(UserWarning, match=f'{shard} is damaged and removed; its features are computed again'):
            again = Fill(tmp_path, model)
    assert not shard.exists()
    again(split)
    assert sum(again.batches) == size in (8, COUNT - 16)
    assert torch.equal(vectors(again.cache, found), expected)
    assert shard.exists()


def test_duplicates(model: nn.Module, paths: list[Path], tmp_path: Path) -> None:
    """Are computed once, within a split and from split to split, wherever the file is."""
    copies: list[Any] = [paths[0], paths[1], {'bytes': paths[0].read_bytes(), 'path': None}, paths[1], paths[0]]
    for streamed in (False, True):
        fill = Fill(tmp_path / str(streamed), model)
        found = fill(split_of(copies, streamed=streamed))
        assert sum(fill.batches) == 2 == len(set(found))
        fill(split_of(paths[:4], streamed=streamed))
        assert sum(fill.batches) == 4
        assert torch.equal(*vectors(fill.cache, [found[0], found[2]]))


def test_more_images(model: nn.Module, paths: list[Path], tmp_path: Path) -> None:
    """Those seen before stay as they are."""
    fill = Fill(tmp_path, model)
    few = fill(split_of(paths[5:15]))
    before = vectors(fill.cache, few).clone()
    found = fill(split_of(paths))
    assert fill.seen == COUNT
    assert torch.equal(vectors(fill.cache, few), before)
    torch.testing.assert_close(vectors(fill.cache, found), directly(model, split_of(paths), 4))


def fill_a_share(folder: str, paths: list[Path], log: str, late: int) -> None:
    """What each of two processes does, one of them later than the other."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the process they were forked from
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=3).eval()
    accelerator = Accelerator(cpu=True)
    split = split_of(paths)
    count = []

    def compute(images: Tensor) -> Tensor:
        count.append(len(images))
        return features_of(model, images)

    time.sleep(2.0 * (accelerator.process_index == late))
    cache = FeatureCache(Path(folder), 'context')
    found = digests(split)
    with torch.no_grad():
        cache.fill(
            Images(split, Transforms(model, 64).evaluation()), found, compute, Machine(accelerator), Throughput(0)
        )
    assert all(digest in cache for digest in found)
    Path(f'{log}{accelerator.process_index}').write_text(f'{accelerator.num_processes} {count}')


@pytest.mark.parametrize('late', [0, 1])
def test_two_processes(model: nn.Module, paths: list[Path], tmp_path: Path, late: int) -> None:
    """Share the work, see all of it afterwards, and compute what one process does, whichever of them comes late."""
    debug_launcher(fill_a_share, (str(tmp_path / 'two'), paths, f'{tmp_path}/log', late), num_processes=2)
    assert [(tmp_path / f'log{rank}').read_text() for rank in range(2)] == ['2 [4, 4, 4, 1]', '2 [4, 4]']
    one, two = Fill(tmp_path / 'one', model), Fill(tmp_path / 'two', model)
    found = one(split_of(paths))
    two(split_of(paths))
    assert two.batches == []
    assert torch.equal(vectors(one.cache, found), vectors(two.cache, found))


def test_batches(model: nn.Module, paths: list[Path], tmp_path: Path) -> None:
    """Of vectors, with the labels of the split, in the order that is asked for."""
    many = np.array([[i % 2, i % 3 == 0] for i in range(COUNT)])
    for labels, streamed in itertools.product((None, many), (False, True)):
        split = split_of(paths, labels, streamed)
        fill = Fill(tmp_path, model)
        found = fill(split)
        kept = Features(split, found, fill.cache)
        plan = Batching(COUNT, 4, 2)
        indices: list[int] = []
        for batch in loader(kept, TrainingBatches(split, plan, seed=3)):
            assert torch.equal(batch.inputs, vectors(fill.cache, [found[i] for i in batch.indices.tolist()]))
            assert batch.labels.tolist() == split.labels[batch.indices.numpy()].tolist()
            assert batch.weights.tolist() == [1.0] * len(batch.indices)
            indices += batch.indices.tolist()
        assert sorted(indices) == list(range(COUNT))
    assert kept.__getitems__([Item(3, weight=0.0)]).weights.tolist() == [0.0]


# What belongs together


def test_context(model: nn.Module) -> None:
    """Another weight, name, dtype or shape, or another preparation, and nothing else, makes another one."""
    tensors = dict(without_classifier(model))
    prepared = dict(Transforms(model, 64).config, min_side=73)
    context = context_of(tensors, prepared)
    assert len(context) == 64

    def changed(name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {**tensors, name: change(tensors[name].clone())}

    last = next(name for name, tensor in reversed(tensors.items()) if tensor.dim() == 1)
    others = [
        context_of(changed(last, lambda tensor: tensor.index_fill_(0, torch.tensor([0]), -0.0)), prepared),
        context_of(changed(last, lambda tensor: tensor.index_fill_(0, torch.tensor([0]), 0.0)), prepared),
        context_of(changed(last, torch.Tensor.double), prepared),
        context_of(changed(last, lambda tensor: tensor[None]), prepared),
        context_of({**tensors, 'more': torch.zeros(())}, prepared),
        context_of({**tensors, 'more': torch.zeros(0)}, prepared),
        context_of({name.upper(): tensor for name, tensor in tensors.items()}, prepared),
        *(context_of(tensors, dict(prepared, **{key: 'other'})) for key in prepared),
        context_of(tensors, {}),
    ]
    assert len({context, *others}) == 1 + len(others)

    same = {
        name: tensor.contiguous(memory_format=torch.channels_last)
        if tensor.dim() == 4
        else nn.Parameter(tensor, tensor.is_floating_point())
        for name, tensor in reversed(tensors.items())
    }
    assert context_of(same, dict(reversed(prepared.items()))) == context
    assert (
        len({context_of({'x': torch.ones(3, dtype=dtype)}, {}) for dtype in (torch.bfloat16, torch.half, torch.bool)})
        == 3
    )


def test_the_classifier_does_not_matter(model: nn.Module) -> None:
    torch.manual_seed(0)
    other = timm.create_model('test_resnet', num_classes=7)
    other.load_state_dict({**other.state_dict(), **without_classifier(model)})
    assert context_of(without_classifier(other), {}) == context_of(without_classifier(model), {})


def test_contexts_are_kept_apart(model: nn.Module, paths: list[Path], tmp_path: Path) -> None:
    split = split_of(paths[:3])
    one, other = (Fill(tmp_path, model, context_of(without_classifier(model), dict(size=size))) for size in (64, 32))
    found = one(split)
    assert one.cache.directory != other.cache.directory and found[0] not in other.cache
    other(split)
    assert sum(other.batches) == 3


def test_features_are_kept_in_the_cache_of_the_hub() -> None:
    assert cache_directory().is_relative_to(Path(os.environ['HF_HOME']) / 'assets' / 'xception_hub' / 'features')
