"""The tool in a shell: completion by TAB, and exit statuses that scripts can rely on."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from commands import call
from patience import patience

from xception_hub.cli import COMMANDS, main

RC = {'bash': ('.bashrc', "PS1='ready: '\n"), 'zsh': ('.zshrc', "autoload -Uz compinit; compinit -u; PS1='ready: '\n")}
TYPED = {  # what is typed before TAB -> what it becomes
    'xception-hub pro': 'prove',
    'xception-hub convert --input-ra': '--input-range',
    'xception-hub convert --input-range r': 'raw',
    'xception-hub finetune --recipe tran': 'transfer',
    'xception-hub predict holid': 'holidays',
    'xception-hub run tra': 'train.py',
}

# What ends each command with status 1: it is refused, or what was asked does not hold.
REFUSED: dict[str, list[str]] = {
    'verify': ['nowhere.safetensors'],
    'run': ['nowhere.py'],
    'convert': ['nowhere.keras', '-o', 'DIR'],
    'prove': ['nowhere.keras', 'DIR'],
    'to-keras': ['DIR', '-o', 'model.keras'],
    'finetune': ['--dataset', 'nowhere', '--output', 'DIR'],
    'predict': ['nowhere.jpg', '--model', 'DIR'],
    'export': ['DIR', '--format', 'onnx', '-o', 'OUT'],
    'explain': ['nowhere.jpg', '--model', 'DIR'],
    'demo': ['DIR'],
    'publish': ['DIR', 'org/name', '--dry-run'],
    'paper': ['--no-speed', '--json', 'nowhere/report.json'],
    'ablations': ['draw', 'nowhere.json'],
}
UNREADABLE = '--no-such-option'


@pytest.mark.parametrize('shell', RC)
def test_completion(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real shell, after the command and in its next session."""
    if not (program := shutil.which(shell)):
        pytest.skip(f'{shell} is not installed')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert call(main, '--install-completion', '--shell', shell).returncode == 0
    name, lines = RC[shell]
    with open(tmp_path / name, 'a') as file:
        file.write(lines)
    for wanted in ('holidays.jpg', 'train.py'):
        (tmp_path / wanted).touch()
    terminal, inside = pty.openpty()
    environment = {'HOME': str(tmp_path), 'PATH': os.environ['PATH'], 'TERM': 'dumb'}
    with subprocess.Popen(
        [program, '-i'], stdin=inside, stdout=inside, stderr=inside, env=environment, cwd=tmp_path,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            shown = read_until(terminal, 'ready: ')
            for typed, expected in TYPED.items():
                os.write(terminal, f'{typed}\t'.encode())
                shown = read_until(terminal, expected)
                assert expected in shown, (typed, shown)
                os.write(terminal, b'\x15')  # empties the line
        finally:
            process.kill()
            for end in (terminal, inside):
                os.close(end)


def read_until(terminal: int, expected: str) -> str:
    """What a terminal shows until it shows this, or for some seconds."""
    shown, end = '', time.monotonic() + patience(10)
    while expected not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096).decode(errors='replace')
    return shown


@pytest.mark.parametrize(
    'command', [pytest.param(name, marks=[pytest.mark.needs('gradio')] * (name == 'demo')) for name in COMMANDS]
)
def test_statuses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 for help, 1 for what is refused, with one line that begins with error; 2 for an unreadable command line."""
    monkeypatch.chdir(tmp_path)
    shown = call(main, command, '--help')
    assert shown.returncode == 0
    if command in REFUSED:  # doctor refuses nothing
        result = call(main, command, *REFUSED[command])
        assert (result.returncode, result.stdout) == (1, ''), result
        assert re.search(r'^error: ', result.stderr, re.MULTILINE)
    if command != 'run':  # whose options are the script's
        assert call(main, command, *REFUSED.get(command, []), UNREADABLE).returncode == 2
