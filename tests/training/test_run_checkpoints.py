"""Checkpoints: every bit that was written, or what was there before; optimizers that go on as if nothing had been."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from forked import run_code
from random_model import images
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from xception_hub.data.data_settings import DataSettings
from xception_hub.data.labelled import Data, Split
from xception_hub.data.seen import Seen
from xception_hub.errors import DataError, ResumeError
from xception_hub.training.run_checkpoints import (
    Checkpoint,
    Checkpoints,
    pack_optimizer,
    read,
    restore,
    unpack_optimizer,
    write,
)
from xception_hub.training.run_data import divided, manifest_of
from xception_hub.training.run_directory import Run
from xception_hub.training.settings import OutputSettings


def same_bits(one: Tensor, other: Tensor) -> bool:
    """NaN and the sign of zero included."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


# Files


def test_round_trip(tmp_path: Path) -> None:
    """Every bit of every dtype, shape and memory format; kinds and names with dots; a state in any language."""
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    shared = torch.randn(4, 6)
    model = {
        'float32': special,
        'bfloat16': special.bfloat16(),
        'float16': special.half(),
        'float64': special.double(),
        'int64': torch.tensor([2**63 - 1]),
        'uint8': torch.arange(5, dtype=torch.uint8),
        'bool': special > 0,
        'scalar': torch.tensor(7),
        'empty': torch.zeros(0, 3),
        'a.b.c': torch.zeros(1),
        'channels_last': torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        'transposed': shared.T,
        'part': shared[1:3, ::2],
        'row': shared[0],
        'whole': shared,
        'tied': shared,
        'expanded': torch.randn(3, 1).expand(3, 4),
        'parameter': nn.Parameter(torch.randn(2)),
    }
    state = dict(progress=dict(epoch=3, loss=0.1, best=None, history=[1, 'zwölf', True]), text='\N{CAT FACE}')
    write(tmp_path / 'new' / 'x.safetensors', {'model': model, 'optimizer': {'0.exp_avg': torch.ones(2)}}, state)
    found = read(tmp_path / 'new' / 'x.safetensors')
    assert (found.state, set(found.tensors)) == (state, {'model', 'optimizer'})
    assert found.tensors['model'].keys() == model.keys()
    for name, tensor in model.items():
        assert same_bits(found.tensors['model'][name], tensor), name
        assert found.tensors['model'][name].is_contiguous()
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['x.safetensors']


def damage(content: bytes) -> dict[str, bytes]:
    header = 8 + int.from_bytes(content[:8], 'little')
    other = safetensors.torch.save({'model.weight': torch.zeros(3)})  # without a state
    return {
        'empty': b'',
        'begun': content[:5],
        'in the header': content[: header // 2],
        'no tensors': content[:header],
        'cut': content[:-1],
        'longer': content + b'\0',
        'no header': bytes(8) + content[8:],
        'huge header': b'\xff' * 8 + content[8:],
        'text': b'Not found',
        'no state': other,
        'state': content.replace(b'{\\"epoch', b'?\\"epoch', 1),
    }


def test_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / 'x.safetensors'
    write(file, {'model': {'weight': torch.randn(100)}}, dict(epoch=1))
    for kind, content in damage(file.read_bytes()).items():
        file.write_bytes(content)
        with pytest.raises(ResumeError, match=str(file)):
            print(kind, read(file))
    for path in (tmp_path / 'none.safetensors', tmp_path):
        with pytest.raises(ResumeError, match=str(path)):
            read(path)


FULL_DISK = """
import resource
from pathlib import Path
import torch
from xception_hub.training.run_checkpoints import Checkpoints, ResumeError, read, write
file, folder = Path('x.safetensors').absolute(), Path('run').absolute()
write(file, {'model': {'weight': torch.ones(1000)}}, dict(epoch=1))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for attempt in (lambda: write(file, {'model': {'weight': torch.zeros(200_000)}}, dict(epoch=2)),
                lambda: Checkpoints(folder).save(0, 1, {'model': {'weight': torch.zeros(200_000)}}, {})):
    try:
        attempt()
    except ResumeError as e:
        print(e)
print(read(file).state, read(file).tensors['model']['weight'].sum().item())
"""


def test_full_disk(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The error names a remedy; the old file is whole, and nothing half-written is left."""
    file, folder, log = tmp_path / 'x.safetensors', tmp_path / 'run', tmp_path_factory.mktemp('log') / 'log'
    status, text = run_code(FULL_DISK, tmp_path, log)
    assert status == 0, text
    first, second, old = text.splitlines()
    for line, path in ((first, file), (second, folder / '00-000000001.safetensors')):
        assert line.startswith(f'{path} (1 MB) could not be written: ')
        assert line.endswith('Free some disk space, and run the same command again.')
    assert old == "{'epoch': 1} 1000.0"
    assert sorted(tmp_path.rglob('*')) == [folder, file]


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(ResumeError, match='could not be written'):
        write(tmp_path / 'file' / 'x.safetensors', {}, {})


# Folders


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rotation(tmp_path: Path) -> None:
    """The newest ones, by phase and update, and the best one; nothing else is touched."""
    checkpoints = Checkpoints(tmp_path / 'run', keep=3)
    assert (checkpoints.all(), checkpoints.newest()) == ([], None)
    write(checkpoints.best, {}, dict(epoch=0))
    for name in ('notes.txt', 'x.safetensors', '1-2.safetensors'):
        (tmp_path / 'run' / name).write_text('mine')
    kept = {'notes.txt', 'x.safetensors', '1-2.safetensors', 'best.safetensors'}
    for phase, update in ((0, 0), (0, 9), (0, 10), (0, 100), (1, 0), (1, 8)):
        checkpoints.save(phase, update, {'model': {'weight': torch.tensor(update)}}, dict(phase=phase))
        newest = checkpoints.newest()
        assert newest is not None
        assert (newest.path, newest.state) == (checkpoints.path(phase, update), dict(phase=phase))
    assert set(names(tmp_path / 'run')) - kept == {
        '00-000000100.safetensors',
        '01-000000000.safetensors',
        '01-000000008.safetensors',
    }
    assert set(names(tmp_path / 'run')) >= kept


def test_newest_passes_over_damaged_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for update in (1, 2):
        checkpoints.save(0, update, {'model': {'weight': torch.tensor(update)}}, dict(update=update))
    damaged = checkpoints.path(0, 2)
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.warns(UserWarning, match=f'{damaged}.*before it is used'):
        newest = checkpoints.newest()
    assert newest is not None and newest.state == dict(update=1)
    checkpoints.path(0, 1).write_bytes(b'')
    with pytest.warns(UserWarning, match='before it is used'):
        assert checkpoints.newest() is None


def test_start_removes_what_a_crash_has_left_half_written(tmp_path: Path) -> None:
    run = Run(OutputSettings(output=tmp_path / 'run'), {}, 1)
    run.start({})
    run.checkpoints.save(0, 1, {}, {})
    kept = sorted(run.directory.rglob('*'))
    for name in ('settings.yaml.89abcdef.part', 'checkpoints/00-000000002.safetensors.0123abcd.part'):
        (run.directory / name).write_bytes(b'')
    run.start({})
    assert sorted(run.directory.rglob('*')) == kept


def test_directories(tmp_path: Path) -> None:
    """A run goes on in its own directory, by the same command and as many processes; anything else is refused."""
    output = OutputSettings(output=tmp_path / 'run')
    Run(output, dict(rate=0.1, workers=0), 1).start({})
    Run(output, dict(rate=0.1, workers=2), 1)  # of workers the result does not depend
    with pytest.raises(ResumeError, match='rate is 0.1 there and 0.5 here.*--config .*settings.yaml'):
        Run(output, dict(rate=0.5, workers=0), 1)
    with pytest.raises(ResumeError, match='a run of 1 processes; 2 .*Start 1, or name'):
        Run(output, dict(rate=0.1), 2)
    several = OutputSettings(output=tmp_path / 'several')
    Run(several, dict(rate=0.1, accumulation=1), 4).start({})
    with pytest.raises(ResumeError, match='Start 4, or pass --accumulation 2 '):
        Run(several, dict(rate=0.1, accumulation=1), 2)
    Run(several, dict(rate=0.1, accumulation=2), 2).start({})
    Run(several, dict(rate=0.1, accumulation=1), 4)
    with pytest.raises(ResumeError, match='accumulation is 2 there and 3 here'):
        Run(several, dict(rate=0.1, accumulation=3), 2)
    (tmp_path / 'run' / 'metrics.json').write_text('{}')
    with pytest.raises(ResumeError, match=f'finished.*--model local-dir:{tmp_path}/run and another --output'):
        Run(output, dict(rate=0.5), 1)
    (tmp_path / 'run' / 'settings.yaml').write_text('text')
    with pytest.raises(ResumeError, match='settings.yaml is damaged'):
        Run(output, dict(rate=0.1), 1)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('...')
    for place, reason in (('mine', 'contains files, but no run'), ('mine/thesis.txt', 'is a file. Name another')):
        with pytest.raises(ResumeError, match=reason):
            Run(OutputSettings(output=tmp_path / place), {}, 1)


def test_changed_data(tmp_path: Path) -> None:
    """A run keeps to the images, labels and classes that it began with, and the error about others names the way on."""
    run = Run(OutputSettings(output=tmp_path / 'run'), {}, 1)
    split = Split('train', [], np.arange(4), np.array([0, 1, 0, 1]), 'files')  # type: ignore[arg-type]
    data = Data(split, split.select([]), ['cat', 'dog'], False, False)
    run.start(manifest_of(data, run))
    assert manifest_of(data, run)['class_names'] == ['cat', 'dog']
    for other in (
        replace(data, train=replace(split, files='others')),
        replace(data, train=split.select([0, 1, 2])),
        replace(data, class_names=['cat', 'hen']),
    ):
        with pytest.raises(DataError, match='has changed since.*another --output'):
            manifest_of(other, run)
    (tmp_path / 'run' / 'metrics.json').write_text('{}')
    with pytest.raises(DataError, match=f'--model local-dir:{tmp_path}/run'):
        manifest_of(replace(data, class_names=['cat', 'hen']), run)


def test_images_that_the_model_has_seen(tmp_path: Path) -> None:
    """A validation split of its own is without them, also when the run goes on and does not scan again."""
    names = np.array([bytes([i]) * 32 for i in range(8)], object)
    train = Split('train', [], np.arange(4), np.array([0, 1, 0, 1]), digests=names[:4])  # type: ignore[arg-type]
    validation = replace(train, name='test', digests=names[4:])
    data = Data(train, validation, ['cat', 'dog'], False, True)
    seen, manifest = Seen(trained=frozenset({names[5][:8]})), dict[str, Any](bad_images=[])
    machine: Any = SimpleNamespace(print=lambda text: None)
    arguments = (DataSettings(dataset='x'), 0, False, seen, manifest, machine)
    with pytest.warns(UserWarning, match='1 of the 4 images of the validation split'):
        assert divided(data, *arguments).validation.source_rows.tolist() == [0, 2, 3]
    none = np.empty(0, object)
    again = replace(data, train=replace(train, digests=none), validation=replace(validation, digests=none))
    assert divided(again, *arguments).validation.source_rows.tolist() == [0, 2, 3]


def test_restore(tmp_path: Path) -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    restore(other, one.state_dict(), tmp_path / 'x')
    assert torch.equal(one.weight, other.weight)
    for tensors in (dict(weight=one.weight), dict(one.state_dict(), more=one.weight), nn.Linear(2, 3).state_dict()):
        with pytest.raises(ResumeError, match=rf'{tmp_path}/x.*Error.* in loading'):
            restore(other, tensors, tmp_path / 'x')


# Optimizers


def network() -> nn.Module:
    """Of convolutions in the memory format that training takes, with a classifier."""
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=4).to(memory_format=torch.channels_last).train()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        batch = images(32, 32, batch=4, seed=step).contiguous(memory_format=torch.channels_last)
        nn.functional.cross_entropy(model(batch), torch.arange(4)).backward()
        optimizer.param_groups[0]['lr'] *= 0.9  # a schedule's work
        optimizer.step()


def through_a_file(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Checkpoint:
    tensors, rest = pack_optimizer(optimizer)
    write(folder / 'x.safetensors', {'model': model.state_dict(), 'optimizer': tensors}, dict(optimizer=rest))
    return read(folder / 'x.safetensors')


@pytest.mark.parametrize(
    ('name', 'before'),
    [('momentum', 3), ('adamw', 3), ('adamw', 0), ('nadamw', 3), ('rmsproptf', 3), ('lion', 3), ('adafactorbv', 3)]
    + [(name, 3) for name in ('adan', 'muon', 'lookahead_adamw')],
)
def test_optimizers_go_on(name: str, before: int, tmp_path: Path) -> None:
    """Some updates, a file, some more: bit by bit what six updates give, with a rate of its own for each layer."""

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.05, layer_decay=0.75)

    expected = network()
    whole = optimizer_of(expected)
    train(expected, whole, range(6))

    model = network()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(before))
    checkpoint = through_a_file(tmp_path, model, optimizer)
    torch.manual_seed(1)
    model = timm.create_model('test_resnet', num_classes=4).to(memory_format=torch.channels_last).train()
    model.load_state_dict(checkpoint.tensors['model'])
    unpacked = optimizer_of(model)
    unpack_optimizer(unpacked, checkpoint.tensors.get('optimizer', {}), checkpoint.state['optimizer'])
    assert_same_state(unpacked.state_dict(), optimizer.state_dict())
    train(model, unpacked, range(before, 6))
    assert_same_state(unpacked.state_dict(), whole.state_dict())
    for key, tensor in expected.state_dict().items():
        assert same_bits(model.state_dict()[key], tensor), key


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    """In values, dtypes and memory formats."""
    assert one['param_groups'] == other['param_groups']
    assert one['state'].keys() == other['state'].keys()
    for index, values in other['state'].items():
        assert one['state'][index].keys() == values.keys()
        for name, value in values.items():
            found = one['state'][index][name]
            if isinstance(value, Tensor):
                assert same_bits(found, value), name
                assert is_channels_last(found) == is_channels_last(value), name
            else:
                assert (type(found), found) == (type(value), value), name


def test_state_in_another_dtype(tmp_path: Path) -> None:
    """As it was, where torch would make it that of the parameters."""
    model = nn.Linear(3, 2).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    precise = torch.tensor([[1 / 3] * 3] * 2)
    optimizer.state[model.weight]['momentum_buffer'] = precise
    optimizer.state[model.bias]['momentum_buffer'] = torch.ones(2, dtype=torch.int32)
    checkpoint = through_a_file(tmp_path, model, optimizer)
    other = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    unpack_optimizer(other, checkpoint.tensors['optimizer'], checkpoint.state['optimizer'])
    assert same_bits(other.state[model.weight]['momentum_buffer'], precise)
    assert other.state[model.bias]['momentum_buffer'].dtype == torch.int32


def test_state_of_version_0_2(tmp_path: Path) -> None:
    """It also has what each optimizer has from its settings, with lists for tuples."""
    model = network()
    optimizer = create_optimizer_v2(model, opt='adamw')
    train(model, optimizer, range(1))
    checkpoint = through_a_file(tmp_path, model, optimizer)
    for group in checkpoint.state['optimizer']['groups']:
        group.update(betas=[0.1, 0.2], params=[], foreach=None, decoupled_weight_decay=True)
    unpacked = create_optimizer_v2(model, opt='adamw')
    unpack_optimizer(unpacked, checkpoint.tensors['optimizer'], checkpoint.state['optimizer'])
    assert_same_state(unpacked.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize(('value', 'kind'), [([torch.zeros(2)], 'list'), (torch.Generator(), 'Generator')])
def test_state_that_can_not_be_kept(value: Any, kind: str) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter]['old'] = value
    with pytest.raises(ResumeError, match=f'SGD.*{kind}.*--optimizer'):
        pack_optimizer(optimizer)
