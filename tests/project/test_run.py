"""`xception-hub run SCRIPT`: what `python SCRIPT` does, with the models."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from conftest import ROOT

from xception_hub.cli import main

SCRIPT = """
import sys

class Known:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return sys.modules['timm'].is_model('xception_paper')

if __name__ == '__main__':
    print(sys.argv, __name__, __file__, __package__, __spec__ and __spec__.name, sys.path[0], Known.__module__)
    for method in sys.argv[1:3]:
        from torch.utils.data import DataLoader
        print(method, *DataLoader(Known(), num_workers=1, multiprocessing_context=method))
    raise LookupError('of the script')
"""
PYTHON = [sys.executable, '-W', 'ignore::DeprecationWarning']  # of fork beside threads
RUN = [*PYTHON, '-m', 'xception_hub', 'run']


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / 'scripts').mkdir()
    file = tmp_path / 'scripts' / 'script.py'
    file.write_text(SCRIPT)
    return file


def process(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], cwd=folder, env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True, capture_output=True
    )


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(['scripts/script.py'], id='script'),
        pytest.param(['-m', 'scripts.script'], id='module', marks=pytest.mark.slow),
    ],
)
def test_as_python_does(name: list[str], script: Path, tmp_path: Path) -> None:
    """All that a script sees and shows is the same; a traceback has the same lines from the script on."""
    ours, expected = (process([*python, *name], tmp_path) for python in (RUN, PYTHON))
    assert (ours.stdout, ours.returncode) == (expected.stdout, 1)
    assert ours.stderr.endswith(expected.stderr[expected.stderr.index(f'  File "{script.resolve()}"') :])


@pytest.mark.slow
def test_workers(script: Path, tmp_path: Path) -> None:
    """Those that start as a new Python know the models, too."""
    result = process([*RUN, script, 'fork', 'spawn'], tmp_path)
    assert 'fork tensor([True]) tensor([True])\nspawn tensor([True]) tensor([True])' in result.stdout, result.stderr


@pytest.mark.slow
def test_many_processes(tmp_path: Path) -> None:
    """As `accelerate launch` starts them."""
    (tmp_path / 'script.py').write_text(
        "import os, timm; open(os.environ['RANK'], 'w').write(str(timm.is_model('xception_paper')))"
    )
    launch = ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', 2, '--main_process_port', 0]
    result = process([*PYTHON, *launch, '-m', 'xception_hub', 'run', 'script.py'], tmp_path)
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / rank).read_text() for rank in '01'] == ['True', 'True']


@pytest.mark.parametrize(
    ('code', 'status'), [('raise SystemExit(7)', 7), ("import sys; sys.exit('no')", 1), ('0', 0)], ids=['7', 'no', '0']
)
def test_status(code: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    (tmp_path / 'script.py').write_text(code)
    assert call(main, 'run', tmp_path / 'script.py').returncode == status


@pytest.mark.parametrize(
    ('given', 'hint'),
    [
        ([], 'Name a script, or -m and a module'),
        (['-m'], 'Name a script, or -m and a module'),
        (['scripts/scrpt.py'], 'There is no script scripts/scrpt.py.* scripts/script.py'),
        (['scripts'], 'There is no script scripts.* scripts/script.py'),
        (['nowhere/train.py'], 'There is no script nowhere/train.py.* The folder nowhere has the scripts: none'),
        (['-m', 'nothing'], 'No module named nothing. -m takes'),
        (['-m', 'nothing.inside'], 'No module named nothing.inside'),
    ],
    ids=str,
)
def test_what_is_no_script(given: list[str], hint: str, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(script.parents[1])
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    result = call(main, 'run', *given)
    assert result.returncode == 1 and re.match(f'error: {hint}', result.stderr)
