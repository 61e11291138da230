"""Whatever ends a run, and whenever: the same command goes on and ends with the same bits."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import SMALL, Running, finetune, run
from handwritten_digits import handwritten_digits
from safetensors.torch import load_file

# Everything that draws random numbers, and everything that keeps a state.
EVERYTHING = (
    *SMALL,
    '--recipe full --epochs 3 --warmup-epochs 1 --batch-size 14 --accumulation 2 --mixup 0.2',
    '--cutmix 0.5 --random-erasing 0.3 --ema-decay 0.9 --drop-path-rate 0.1',
    '--precise-bn-images 40',
)
TRANSFER = (
    '--model test_resnet --no-pretrained --image-size 64 --recipe transfer --head-epochs 8',
    '--epochs 2 --batch-size 16 --drop-rate 0.3',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits; and the processes' server has started, so that times are those of runs."""
    run('--help', log=tmp_path_factory.mktemp('help') / 'log')
    return handwritten_digits(tmp_path_factory.mktemp('data') / 'digits', per_class=12, classes=8)


def outcome(output: Path) -> dict[str, Any]:
    """What must not depend on interruptions: weights, figures, and the figures of each epoch but for the clock's."""
    from xception_hub.training.run_checkpoints import Checkpoints

    newest = Checkpoints(output / 'checkpoints').newest()
    assert newest is not None
    history = [
        {name: value for name, value in row.items() if 'per_second' not in name}
        for row in newest.state['progress']['history']
    ]
    return dict(
        weights=(output / 'model.safetensors').read_bytes(),
        history=history,
        metrics=json.loads((output / 'metrics.json').read_text()),
    )


@pytest.mark.parametrize(
    ('recipe', 'processes', 'workers'),
    [
        (EVERYTHING, 1, 0),
        pytest.param(EVERYTHING, 1, 2, marks=pytest.mark.slow),
        pytest.param(EVERYTHING, 2, 0, marks=pytest.mark.slow),
        pytest.param((*EVERYTHING, '--streaming'), 2, 0, marks=pytest.mark.slow),
        pytest.param(TRANSFER, 1, 0, marks=pytest.mark.slow),
        pytest.param(TRANSFER, 2, 0, marks=pytest.mark.slow),
    ],
    ids=[
        'full',
        'full, workers',
        'full, two processes',
        'stream, two processes',
        'transfer',
        'transfer, two processes',
    ],
)
def test_killed_at_random_moments(recipe: Any, processes: int, workers: int, folder: Path, tmp_path: Path) -> None:
    """SIGKILL, again and again, in the middle of epochs, evaluations and writes."""

    def arguments(name: str) -> tuple[Any, ...]:
        return (
            *recipe,
            f'--dataset {folder} --workers {workers} --checkpoint-minutes 0',
            '--feature-cache',
            tmp_path / f'{name} features',
            f'--output {tmp_path / name}',
        )

    started = time.monotonic()
    finetune(*arguments('whole'), log=tmp_path / 'whole.log', processes=processes)
    duration = time.monotonic() - started
    generator = random.Random(f'{recipe} {processes} {workers}')
    kills, log = 0, tmp_path / 'killed.log'
    while not (tmp_path / 'killed' / 'metrics.json').exists():
        running = Running(arguments('killed'), log, processes)
        if kills < 5:
            if kills:
                time.sleep(generator.uniform(0.2, 0.9) * duration)
            else:  # once there is something to go on from
                running.until(f'{tmp_path}/killed/checkpoints/*.safetensors')
            running.kill(signal.SIGKILL)
            kills += 1
            running.wait()
        else:
            assert running.wait().status == 0, log.read_text()
    assert 'Going on from' in log.read_text()
    assert outcome(tmp_path / 'killed') == outcome(tmp_path / 'whole')
    assert not list((tmp_path / 'killed').rglob('*.part'))


@pytest.mark.parametrize('number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_asked_to_stop(number: int, processes: int, folder: Path, tmp_path: Path) -> None:
    """Ctrl-C, and a batch system's signal: saved where it is, and said how to go on."""
    arguments = (*EVERYTHING, '--dataset', folder, '--output')
    running = Running((*arguments, tmp_path / 'stopped'), tmp_path / 'log', processes)
    running.until(f'{tmp_path}/stopped/checkpoints/best.safetensors')  # the first epoch has ended
    running.kill(number)
    ended = running.wait()
    assert ended.status == 130, ended.text
    assert f'finetune.py --config {tmp_path / "stopped" / "settings.yaml"}' in ended.text
    assert 'Traceback' not in ended.text
    finetune('--config', tmp_path / 'stopped' / 'settings.yaml', log=tmp_path / 'log', processes=processes)
    finetune(*arguments, tmp_path / 'whole', log=tmp_path / 'whole.log', processes=processes)
    assert outcome(tmp_path / 'stopped') == outcome(tmp_path / 'whole')


@pytest.mark.slow
def test_fewer_processes(folder: Path, tmp_path: Path) -> None:
    """With more steps in an update instead: the same batches, dropout and mixup, so the same weights up to rounding."""
    arguments = (*SMALL, '--recipe full --epochs 3 --warmup-epochs 1 --batch-size 7 --mixup 0.2 --drop-path-rate 0.1')
    arguments = (*arguments, '--batch-norm frozen --dataset', folder, '--output')
    running = Running((*arguments, tmp_path / 'stopped'), tmp_path / 'log', 2)
    running.until(f'{tmp_path}/stopped/checkpoints/best.safetensors')
    running.kill(signal.SIGINT)
    running.wait()
    going_on = ('--config', tmp_path / 'stopped' / 'settings.yaml')
    assert 'Start 2, or pass --accumulation 2' in run(*going_on, log=tmp_path / 'log').text
    finetune(*going_on, '--accumulation 2', log=tmp_path / 'log')
    finetune(*arguments, tmp_path / 'whole', log=tmp_path / 'whole.log', processes=2)
    stopped, whole = (load_file(tmp_path / name / 'model.safetensors') for name in ('stopped', 'whole'))
    for name, tensor in whole.items():
        torch.testing.assert_close(stopped[name], tensor, rtol=1e-4, atol=1e-6)
