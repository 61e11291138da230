"""The wheel, in an environment of its own, outside of any clone: everything that a clone has."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import HubServer
from kitchen_photos import kitchen_photos
from port_a_keras_model import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`xception-hub` of a wheel that was built and installed. Its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp('wheel')
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
    subprocess.run([*pip, 'wheel', '--no-deps', '--wheel-dir', folder, ROOT], check=True)
    (wheel,) = folder.glob('*.whl')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'env'], check=True)
    python = folder / 'env' / 'bin' / 'python'
    subprocess.run([*pip, '--python', python, 'install', '--no-deps', wheel], check=True)
    (site,) = (folder / 'env' / 'lib').glob('python*/site-packages')
    others = folder / 'dependencies' / 'site-packages'  # a name by which packages know each other
    others.mkdir(parents=True)
    for path in Path(sysconfig.get_path('purelib')).iterdir():  # all but the clone, if it is installed in place
        if not path.name.startswith(('xception_hub', '_xception_hub', '__editable__')):
            (others / path.name).symlink_to(path)
    (site / 'dependencies.pth').write_text(f'{others}\n')
    return folder / 'env' / 'bin' / 'xception-hub'


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Path:
    """Where a user works: a Keras file and photos."""
    folder = tmp_path_factory.mktemp('user')
    shutil.copy(checkpoint.model, folder / 'model.keras')
    kitchen_photos(folder / 'photos')
    return folder


def run(tool: Path, folder: Path, *arguments: object, status: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    result = subprocess.run([tool, *map(str, arguments)], cwd=folder, env=environment, text=True, capture_output=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_is_the_wheel(tool: Path, folder: Path) -> None:
    code = 'import xception_hub, xception_hub.cli as cli; print(xception_hub.__file__, cli.script("finetune.py"))'
    for path in run(tool.with_name('python'), folder, '-c', code).split():
        assert Path(path).is_relative_to(tool.parents[1]) and Path(path).is_file()


def test_help(tool: Path, folder: Path) -> None:
    """Of the tool and of a script; test_command.py has every command's."""
    text = run(tool, folder, '--help')
    for command in ('verify', 'convert', 'prove', 'to-keras', 'publish', 'paper', 'finetune'):
        assert command in text
    assert 'Usage: xception-hub finetune' in run(tool, folder, 'finetune', '--help')
    assert 'Did you mean finetune?' in run(tool, folder, 'finetun', status=2)


def test_keras(tool: Path, folder: Path, hub: HubServer) -> None:
    """convert, verify, prove, to-keras, publish."""
    options = ('--input-range', 'tf', '--interpolation', 'nearest')
    names = ('--class-names', 'cup', 'fork', 'glass', 'knife', 'plate', 'spoon')
    assert 'Written: converted' in run(tool, folder, 'convert', 'model.keras', '-o', 'converted', *options, *names)
    assert '234 of 234 tensors bit-identical' in run(tool, folder, 'verify', 'converted')
    assert 'equal' in run(tool, folder, 'prove', 'model.keras', 'converted', '--sizes', 71)
    assert 'bit-identical' in run(tool, folder, 'to-keras', 'converted', '-o', 'back.keras')
    text = run(tool, folder, 'publish', 'converted', 'org/from-a-wheel', '--dry-run')
    assert 'Dry run: nothing was sent.' in text and text.startswith(hub.url)


def test_finetune(tool: Path, folder: Path) -> None:
    """By the tool, and by accelerate's launcher for many processes."""
    options = ('--recipe', 'full', '--model', 'test_resnet', '--no-pretrained', '--dataset', 'photos')
    small = ('--image-size', 32, '--epochs', 1, '--batch-size', 8)
    assert 'Written: run' in run(tool, folder, 'finetune', *options, *small, '--output', 'run')
    accelerate = ('-m', 'accelerate.commands.launch', '-m', 'xception_hub', 'finetune')
    text = run(tool.with_name('python'), folder, *accelerate, *options, *small, '--output', 'launched')
    assert 'Written: launched' in text


def test_paper(tool: Path, folder: Path) -> None:
    assert 'All 14 checks hold.' in run(tool, folder, 'paper', '--no-speed', '--figures', 'pictures')
    assert (folder / 'pictures' / 'figure_5.png').is_file()
