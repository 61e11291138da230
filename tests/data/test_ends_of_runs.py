"""Runs that cannot begin or are stopped: an error before any work, and what is kept."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from finetuning import SMALL
from patience import patience
from small_images import WORDS, save_digits

import finetune
from xception_hub.inference import predict
from xception_hub.training import run_data, run_directory

QUICK = (*SMALL, '--recipe', 'full', '--epochs', '1')


def run(*arguments: Any) -> None:
    finetune.app.meta([str(argument) for argument in arguments], result_action='return_value')


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp('photos') / 'digits', 4)


@pytest.fixture(scope='module')
def model(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp('model') / 'model'
    run(*QUICK, '--dataset', photos, '--output', directory)
    return directory


def test_an_output_that_cannot_be_made(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a file, or on a disk that is read-only: refused before the data are read."""
    monkeypatch.setattr(run_data, 'load', lambda *_: pytest.fail('read'))
    (tmp_path / 'file').write_text('text')
    with pytest.raises(SystemExit, match=f'{tmp_path}/file is a file. Name another --output'):
        run(*QUICK, '--dataset', photos, '--output', tmp_path / 'file' / 'model')
    monkeypatch.setattr(run_directory.os, 'access', lambda *_: False)  # root may write into any other folder
    with pytest.raises(SystemExit, match=f'{tmp_path} cannot be written. Name another --output'):
        run(*QUICK, '--dataset', photos, '--output', tmp_path / 'model')


def test_one_class_alone(photos: Path, model: Path, tmp_path: Path) -> None:
    """Among itself there is nothing to find; among the model's classes there is."""
    (tmp_path / 'one').mkdir()
    (photos / 'one').rename(tmp_path / 'one' / 'one')
    try:
        evaluation = ('--eval-only', '--restrict-classes', '--output', tmp_path / 'evaluation')
        with pytest.raises(SystemExit, match='--restrict-classes leaves the single class'):
            run(*evaluation, '--model', model, '--dataset', tmp_path / 'one')
    finally:
        (tmp_path / 'one' / 'one').rename(photos / 'one')


def test_a_class_that_is_left_without_images(photos: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match='no image for training of the classes'):
        data = run_data.divided(*_undivided(photos, 2, tmp_path))
    assert len(data.train) == 2 and any('2 of the 12 training images' in note for note in data.notes)


def _undivided(photos: Path, most: int, tmp_path: Path) -> tuple[Any, ...]:
    from types import SimpleNamespace

    from xception_hub.data.seen import Seen

    arguments = ['--dataset', str(photos), '--max-train-samples', str(most), '--output', str(tmp_path / 'model')]
    settings = finetune.app.parse_args(arguments)[1].arguments['settings']
    data = run_data.read(settings.data, settings.model, False)
    return data, settings.data, 0, False, Seen(), {}, SimpleNamespace(print=lambda _: None)


def test_a_pattern_of_photos(photos: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.main(f'{photos}/*/0.png', model=str(model), device='cpu')
    assert sorted(line.split('/')[-2] for line in capsys.readouterr().out.splitlines()) == sorted(WORDS)


def test_a_run_that_is_not_finished(photos: Path, tmp_path: Path) -> None:
    (tmp_path / 'model' / 'checkpoints').mkdir(parents=True)
    with pytest.raises(SystemExit, match='not finished.*--config .*settings.yaml'):
        predict.main(str(photos), model=str(tmp_path / 'model'), device='cpu')


@pytest.mark.parametrize('output', ['rows.csv', 'rows', None])
def test_ctrl_c(
    output: str | None, photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What is kept, and how to go on."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, 'predict', stop)
    with pytest.raises(SystemExit) as ended:
        predict.main(str(photos), model=str(model), output=output and tmp_path / output, device='cpu')
    text = capsys.readouterr().err
    assert ended.value.code == 130 and 'Stopped.' in text
    assert ('goes on' in text) == (output == 'rows') and ('--output' in text) == (output != 'rows')


@pytest.mark.parametrize(('command', 'library'), [('-m xception_hub', 'libarrow'), ('xception-hub', 'libtorch_cpu')])
def test_ctrl_c_in_the_first_seconds(command: str, library: str, tmp_path: Path) -> None:
    """While the package is imported, and what the command needs beside it: no traceback."""
    table, script = tmp_path / 'table.csv', tmp_path / 'xception-hub'  # as pip writes it
    table.write_text('image\n1.png\n')
    script.write_text('import sys\nfrom xception_hub.cli import main\nsys.exit(main())\n')
    words = [str(script)] if command == 'xception-hub' else command.split()
    process = subprocess.Popen(
        [sys.executable, *words, 'predict', str(table), '--model', 'model'], stderr=subprocess.PIPE, text=True
    )
    maps, end = Path(f'/proc/{process.pid}/maps'), time.monotonic() + patience(60)
    while process.poll() is None and library not in maps.read_text() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=patience(60))[1]
    assert process.returncode == 130 and text.startswith('\nStopped.') and 'Traceback' not in text
