"""The blocks of the README and of the pages below docs/ run as they stand there."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from commands import call
from conftest import ROOT, save_repository
from forked import run_code
from hub_server import HubServer
from kitchen_photos import PHOTOS, kitchen_photos
from port_a_keras_model import CLASS_NAMES, Checkpoint
from pyarrow import parquet
from torch import Tensor

from benchmarks.checkpoints import to_legacy
from xception_hub.cli import main, tool
from xception_hub.inference.predictor import Predictor

TRAINED = ('figure_6.png', 'figure_9.png', 'figure_10.png', 'spectrum.png')  # by benchmarks/ablations.py
README = (ROOT / 'README.md').read_text()
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TRANSLATIONS = [page for page in PAGES if page.suffixes == ['.zh', '.md']]


def blocks_of(page: Path, languages: str = 'python|bash') -> list[tuple[str, str]]:
    """Language and code of each."""
    return re.findall(rf'^```({languages})\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)


BLOCKS = [(page, *block) for page in PAGES if page not in TRANSLATIONS for block in blocks_of(page)]
SETUP = [code.strip() for _, _, code in BLOCKS if code.startswith('python3 -m venv')]
# The pages below docs/ lead through all there is, by processes that take long; each page stands by itself.
LONG = {'at_scale.md', 'export.md', 'faster.md', 'fine_tune_on_your_photos.md', 'port_your_keras_model.md'}
# Commands within a sentence that have arguments.
INLINE = sorted({code for page in PAGES for code in re.findall(r'`xception-hub (\w[^`]* [^`]*)`', page.read_text())})
NEEDED = {  # what a block names -> the packages of the extra test-all that it needs
    ' ray,': ['ray'],
    'openvino': ['openvino', 'nncf'],
    'pytorch_grad_cam': ['pytorch_grad_cam'],
    'segmentation_models_pytorch': ['segmentation_models_pytorch'],
}


def equals_predictor(table: Path) -> bool:
    """Whether what another library wrote are the rows of a Predictor."""
    photos = sorted((table.parent / 'photos').glob('*.jpg'))
    rows = Predictor(table.parent / 'build' / 'kitchenware', image_size=150).predict(photos)
    expected = {
        photo.name: (row['label'], pytest.approx(row['probability'], abs=1e-4)) for photo, row in zip(photos, rows)
    }
    found = parquet.read_table(table).to_pylist()
    return len(found) == len(photos) and expected == {
        Path(row['path']).name: (row['label'], row['probability']) for row in found
    }


EXPECTED: dict[str, Callable[[str, Path], bool]] = {  # part of a block -> what holds of its output and its folder
    'index_to_description': lambda text, folder: (
        text in map(timm.data.ImageNetInfo().index_to_description, range(1000))
    ),
    'label_names': lambda text, folder: text in (str(list(CLASS_NAMES)), *CLASS_NAMES, *PHOTOS),
    'output_shape': lambda text, folder: text == '(None, 6)',
    'print(faster)': lambda text, folder: bool(re.match(r'OptimizedModel\(\w+, fp32: \d+\.\d\d times as fast', text)),
    'xception-hub prove': lambda text, folder: size(folder / 'converted' / 'parity.png') > 10_000,
    '--output kitchen-model': lambda text, folder: (
        json.loads((folder / 'kitchen-model' / 'metrics.json').read_text())['top1'] == 1
        and size(folder / 'kitchen-model' / 'report.html') > 50_000
    ),
    'xception-hub explain': lambda text, folder: size(folder / 'explained' / 'photo.png') > 50_000,
    '--dry-run': lambda text, folder: not (folder / 'kitchen-transfer').exists(),
    '513, 513': lambda text, folder: text.endswith('(1, 2048, 32, 32)]'),
    'paper --no-speed': lambda text, folder: text.endswith('All 14 checks hold.'),
    '--figures pictures': lambda text, folder: (
        {path.name for path in (folder / 'pictures').iterdir()}
        == {path.name for path in (ROOT / 'docs' / 'paper').glob('*.png')} - set(TRAINED)
        and size(folder / 'page.html') > 300_000
    ),
    'merge_towers(figure_2)': lambda text, folder: 0 <= float(re.findall(r'tensor\((\S+?),', text)[0]) < 1e-14,
    'predictions-by-ray': lambda text, folder: equals_predictor(folder / 'predictions-by-ray'),
    'predictions-by-spark': lambda text, folder: equals_predictor(folder / 'predictions-by-spark'),
    "'xception_paper_jft'": lambda text, folder: text == 'torch.Size([1, 17000])',
}


def size(file: Path) -> int:
    return file.stat().st_size


def marks_of(page: Path, code: str) -> list[pytest.MarkDecorator]:
    needs = [pytest.mark.needs(*modules) for name, modules in NEEDED.items() if name in code]
    # tests/paper draws the figures, and the README's first command converts by the same steps
    long = page.name in LONG or '--figures' in code or 'convert model.keras' in code
    return [pytest.mark.slow] * long + needs


RUN_HERE = [
    pytest.param(language, code, id=f'{page.stem}: {code.splitlines()[-1][:50]}', marks=marks_of(page, code))
    for page, language, code in BLOCKS
    if code.strip() not in SETUP
]


@pytest.fixture(scope='module')
def folder(
    hub: HubServer,
    converted: Path,
    checkpoint: Checkpoint,
    imagenet_state_dict: dict[str, Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What the reader has: a photo, a Keras model, an old checkpoint, weights of their own, and a clone."""
    folder = tmp_path_factory.mktemp('reader')
    shutil.copy(checkpoint.photos[3], folder / 'photo.jpg')
    (folder / 'photos').mkdir()
    for photo in checkpoint.photos:
        shutil.copy(photo, folder / 'photos')
    kitchen_photos(folder / 'photos_by_class')
    shutil.copy(checkpoint.model, folder / 'model.keras')
    torch.save(to_legacy(imagenet_state_dict), folder / 'legacy.pth')
    save_repository(folder / 'weights', imagenet_state_dict)
    for made in (
        'build/kitchenware',
        'converted',
    ):  # by the first of the README's commands, and by a block that is slow
        shutil.copytree(converted, folder / made)
    for name in ('hubconf.py', 'finetune.py', 'xception_hub', 'conversion', 'examples'):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(language: str, code: str, folder: Path, by_itself: bool) -> str:
    if code.startswith('xception-hub '):  # the wheel's test runs the tool by this name
        code = f'from xception_hub.cli import main; main({shlex.split(code)[1:]})'
        language = 'python'
    if language == 'python' and not by_itself:
        status, output = run_code(code, folder, folder / f'{time.monotonic_ns()}.log')
        assert status == 0, output
        return output
    python = [sys.executable, '-W', 'error::UserWarning', '-c']
    command = [*(python if language == 'python' else ['bash', '-ec']), code]
    folders = [str(Path(sys.executable).parent), os.environ['PATH']]  # a script in Python runs without an activation
    environment = dict(os.environ, PATH=os.pathsep.join(folders[language == 'python' :]))
    result = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(('language', 'code'), RUN_HERE)
def test_block(language: str, code: str, folder: Path) -> None:
    """Each block by itself, in the reader's order."""
    if 'pyspark' in code and not (importlib.util.find_spec('pyspark') and shutil.which('java')):
        pytest.skip('Spark needs Java')
    starts_processes = any(name in code for name in ('datasets', 'ray', 'pyspark'))
    output = run(language, code, folder, by_itself=starts_processes)
    if expected := re.search(r'\)  # (\w+)$', code.strip()):  # what the page says that it prints
        assert output.strip() == expected[1]
    for part, holds in EXPECTED.items():
        assert part not in code or holds(output.strip(), folder), (part, output)
    if code.startswith('xception-hub export'):
        exported = folder / re.findall(r'--output (\S+)', code)[0] / 'export.json'
        comparison = json.loads(exported.read_text())['comparison']
        assert comparison['difference'] < 1e-5 or ('int8' in code and comparison['top1_agreement'] > 0.9)


@pytest.mark.parametrize(
    'command',
    [pytest.param(code, marks=[pytest.mark.needs('gradio')] * code.startswith('demo ')) for code in INLINE],
    ids=str,
)
def test_inline_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are the tool's; `run` runs what they name."""
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)
    if name != 'run':
        tool(name).parse_args([name, *words], exit_on_error=False)
        return
    for attribute in ('argv', 'path'):
        monkeypatch.setattr(sys, attribute, [*getattr(sys, attribute)])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    Path(words[0]).write_text("import sys, timm; print(sys.argv, timm.is_model('xception_paper'))")
    assert call(main, name, *words).stdout == f'{words} True\n'


@pytest.mark.parametrize('page', TRANSLATIONS, ids=lambda page: page.name)
def test_translation(page: Path) -> None:
    """The same code, links, headings and numbers in tables as in the original; a notebook has its translation."""
    original = page.with_name(page.name.replace('.zh', ''))
    assert blocks_of(page, '[a-z]+') == blocks_of(original, '[a-z]+')
    text, expected = page.read_text(), original.read_text().replace('.ipynb)', '.zh.ipynb)')
    for pattern in (r'\]\((.*?)\)', r'^#+ '):
        assert re.findall(pattern, text, re.MULTILINE) == re.findall(pattern, expected, re.MULTILINE)
    rows, expected_rows = (re.findall(r'^\|.*', page, re.MULTILINE) for page in (text, expected))
    numbers = r'\d(?:[\d,.]*\d)?'
    assert [re.findall(numbers, row) for row in rows] == [re.findall(numbers, row) for row in expected_rows]


def test_set_up_commands() -> None:
    """Exactly two, of one line each; `.ci/run` runs them literally."""
    assert len(SETUP) == 2
    assert all('\n' not in command for command in SETUP)
    script = (ROOT / '.ci' / 'run').read_text()
    found = [
        subprocess.run(['bash', '-c', f'cd {ROOT}; {line}'], text=True, capture_output=True).stdout.strip()
        for line in re.findall(r'\$\((grep .*)\)', script)
    ]
    assert sorted(found) == sorted(SETUP)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r'\]\((?!https?:)([^)#]+)\)', page.read_text()):
        assert (page.parent / target).exists(), target
