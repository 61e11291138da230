"""Features of a frozen network: those that it computes, once for each image, and anew for whatever differs."""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from random_model import random_model
from small_images import save_pieces, split_of
from torch import Tensor, nn

from xception_hub.data.items import Item
from xception_hub.data.labelled import Split
from xception_hub.models.build import Transforms, evaluating
from xception_hub.models.classifier import features_of, without_classifier
from xception_hub.training import features
from xception_hub.training.batches import Batching, Images, InOrder, TrainingBatches, loader
from xception_hub.training.features import Features, digest_of, frozen_features, function_of
from xception_hub.training.phase import Task
from xception_hub.training.processes import Machine

COUNT = 21  # images, in batches of 4


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Computed by one thread: the last bit depends on how many there are."""
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


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that networks compute features of, one for each call."""
    found: list[int] = []

    def counted(model: nn.Module, images: Tensor) -> Tensor:
        found.append(len(images))
        return features_of(model, images)

    monkeypatch.setattr(features, 'features_of', counted)
    return found


def run(folder: Path, model: Any, split: Split, workers: int = 0, size: int = 64, **data: Any) -> Tensor:
    """[N, D], from a file in the folder if there is one."""
    machine, transforms = Machine(workers, cpu=True), Transforms(model, size)
    nothing: Any = None
    task = Task(machine, nothing, nothing, {}, model, transforms)
    images = Images(replace(split, **data), transforms.evaluation(), transforms.min_side)
    return frozen_features(images, task, folder).vectors


def directly(model: nn.Module, split: Split, batch_size: int) -> Tensor:
    """Without a file."""
    transforms = Transforms(model, 64)
    images = Images(split, transforms.evaluation(), transforms.min_side)
    with evaluating(model):
        return torch.cat([features_of(model, batch.inputs) for batch in loader(images, InOrder(split, batch_size))])


@pytest.mark.parametrize('streamed', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
def test_features(
    streamed: bool, workers: int, model: nn.Module, paths: list[Path], tmp_path: Path, batches: list[int]
) -> None:
    """The network's features, to the last bit those of the same batches; a second time there is nothing to do."""
    split = split_of(paths, streamed=streamed)
    found = run(tmp_path, model, split, workers)
    assert batches == [4, 4, 4, 4, 4, 1]
    assert (found.shape, found.dtype) == ((COUNT, model.num_features), torch.float32)
    assert torch.equal(found, directly(model, split, batch_size=4))
    torch.testing.assert_close(found, directly(model, split, batch_size=COUNT))
    assert torch.equal(run(tmp_path, model, split), found)
    assert len(batches) == 6 and len(list(tmp_path.iterdir())) == 1


def test_whatever_differs_is_computed_anew(
    model: nn.Module, paths: list[Path], tmp_path: Path, batches: list[int]
) -> None:
    """Images, their order, their size, what is white in them, weights; not the classifier, nor where a file is."""
    torch.manual_seed(0)
    same = timm.create_model('test_resnet', num_classes=7)
    same.load_state_dict({**same.state_dict(), **without_classifier(model)})
    copies = [shutil.copy(path, tmp_path / path.name) for path in paths[:3]]
    cache = tmp_path / 'features'
    found = run(cache, model, split_of(paths[:3]))
    assert torch.equal(run(cache, same, split_of(copies)), found) and batches == [3]
    other = timm.create_model('test_resnet', num_classes=3).eval()
    assert torch.equal(run(cache, model, split_of(paths[2::-1])), found.flip(0))
    run(cache, model, split_of(paths[:2]))
    run(cache, model, split_of(paths[:3]), size=32)
    run(cache, model, split_of(paths[:3]), grey_maximum=4095)
    assert not torch.equal(run(cache, other, split_of(paths[:3])), found)
    assert batches == [3, 3, 2, 3, 3, 3] and len(list(cache.iterdir())) == 6


def damages() -> dict[str, Callable[[Path], Any]]:
    return {
        'empty': lambda path: path.write_bytes(b''),
        'cut': lambda path: path.write_bytes(path.read_bytes()[:-1]),
        'text': lambda path: path.write_text('Not found'),
        'no features': lambda path: features.write(path, {'something': {'else': torch.zeros(3)}}, {}),
        'fewer': lambda path: features.write(path, {'features': {'vectors': torch.zeros(COUNT - 1, 3)}}, {}),
    }


def test_damaged_file(model: nn.Module, paths: list[Path], tmp_path: Path, batches: list[int]) -> None:
    """Is replaced with a warning, to the same bits; without a warning one of another number of images."""
    split = split_of(paths)
    expected = run(tmp_path, model, split).clone()
    (file,) = tmp_path.iterdir()
    for kind, damage in damages().items():
        damage(file)
        with nullcontext() if kind == 'fewer' else pytest.warns(UserWarning, match=str(file)):
            assert torch.equal(run(tmp_path, model, split), expected)
    assert torch.equal(run(tmp_path, model, split), expected) and len(batches) == 6 * 6


def in_two_processes(folder: str, paths: list[Path], log: str, late: int, shared: bool) -> None:
    """What each of two processes does, one of them later than the other."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the process they were forked from
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=3).eval()
    rank, count = Accelerator(cpu=True).process_index, []

    def counted(model: nn.Module, images: Tensor) -> Tensor:
        count.append(len(images))
        return features_of(model, images)

    features.features_of = counted  # in this process, which ends
    time.sleep(2.0 * (rank == late))
    own = Path(folder) if shared else Path(folder, str(rank))
    for _ in range(2):
        found = run(own, model, split_of(paths))
        if rank == 1 and not shared:
            shutil.rmtree(own)
    torch.save(found, f'{log}{rank}.pt')
    Path(f'{log}{rank}').write_text(f'{count}')


@pytest.mark.parametrize(('late', 'shared', 'computed'), [(0, True, 1), (1, False, 2)])
def test_two_processes(
    model: nn.Module, paths: list[Path], tmp_path: Path, late: int, shared: bool, computed: int
) -> None:
    """Share the work, see all of it, and compute what one process does, whichever of them comes late.

    With a disk for each, a process that finds no file lets both compute again: all have the same work to do.
    """
    debug_launcher(in_two_processes, (str(tmp_path / 'two'), paths, f'{tmp_path}/log', late, shared), num_processes=2)
    counts = [(tmp_path / f'log{rank}').read_text() for rank in range(2)]
    assert counts == [str([4, 4, 4] * computed), str([4, 4, 1] * computed)]
    expected = directly(model, split_of(paths), 4)
    assert all(torch.equal(torch.load(tmp_path / f'log{rank}.pt'), expected) for rank in range(2))
    (file,) = (tmp_path / 'two').rglob('*.safetensors')
    assert torch.equal(run(file.parent, model, split_of(paths)), expected)


def test_batches(model: nn.Module, paths: list[Path], tmp_path: Path) -> None:
    """Of vectors, with the labels of the split, in the order that is asked for."""
    many = np.array([[i % 2, i % 3 == 0] for i in range(COUNT)])
    for labels, streamed in itertools.product((None, many), (False, True)):
        split = split_of(paths, labels, streamed)
        vectors = run(tmp_path, model, split)
        kept = Features(split, vectors)
        indices: list[int] = []
        for batch in loader(kept, TrainingBatches(split, Batching(COUNT, 4, 2), seed=3)):
            assert torch.equal(batch.inputs, vectors[batch.indices])
            assert batch.labels.tolist() == split.labels[batch.indices.numpy()].tolist()
            assert batch.weights.tolist() == [1.0] * len(batch.indices)
            indices += batch.indices.tolist()
        assert sorted(indices) == list(range(COUNT))
    assert kept.__getitems__([Item(3, weight=0.0)]).weights.tolist() == [0.0]


# What belongs together


@pytest.mark.parametrize(
    'arguments', [dict(bn_eps=1e-5), dict(pool_padding='symmetric'), dict(act_layer='silu'), dict(global_pool='max')]
)
def test_another_function_of_the_same_weights(arguments: dict[str, Any], paths: list[Path], tmp_path: Path) -> None:
    """Is another network: its features are never those of a file that an earlier one has left."""
    model = random_model(num_classes=3, width_multiplier=0.1875, min_img_size=32)
    other = timm.create_model(
        'xception_paper', num_classes=7, width_multiplier=0.1875, min_img_size=32, **arguments
    ).eval()
    other.load_state_dict({**other.state_dict(), **without_classifier(model)})
    split = split_of(paths[:2])
    before, found = run(tmp_path, model, split), run(tmp_path, other, split)
    assert not torch.equal(before, found) and len(list(tmp_path.iterdir())) == 2
    classes = timm.create_model(
        'xception_paper', num_classes=9, drop_rate=0.5, width_multiplier=0.1875, min_img_size=32
    )
    assert function_of(classes) == function_of(model)


def test_context(model: nn.Module) -> None:
    """Another weight, name, dtype, shape, preparation or image makes another digest; a memory format does not."""
    tensors = dict(without_classifier(model))
    prepared = dict(Transforms(model, 64).config, min_side=73)
    last = next(name for name, tensor in reversed(tensors.items()) if tensor.dim() == 1)
    changed = [
        {last: tensors[last].index_fill(0, torch.tensor([0]), -0.0)},
        {last: tensors[last].index_fill(0, torch.tensor([0]), 0.0)},
        {last: tensors[last].double()},
        {last: tensors[last][None]},
        {'more': torch.zeros(())},
        {'more': torch.zeros(0)},
        *({'x': torch.ones(3, dtype=dtype)} for dtype in (torch.bfloat16, torch.half, torch.bool)),
    ]
    digests = [
        digest_of(tensors, prepared, []),
        digest_of(tensors, {}, []),
        digest_of(tensors, prepared, [bytes(32)]),
        digest_of({name.upper(): tensor for name, tensor in tensors.items()}, prepared, []),
        *(digest_of({**tensors, **change}, prepared, []) for change in changed),
        *(digest_of(tensors, dict(prepared, **{key: 'other'}), []) for key in prepared),
    ]
    assert len({*digests}) == len(digests) and {len(digest) for digest in digests} == {64}

    same = {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for name, tensor in reversed(tensors.items())
    }
    assert digest_of(same, dict(reversed(prepared.items())), []) == digests[0]
