"""xception-hub doctor

Describes this installation for a report of a bug: what is installed and what is missing, devices, caches, the Hub, and
the pretrained weights. It reads versions without importing what is heavy, and tells no token.
"""

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

import huggingface_hub
import torch
from cyclopts import App, Parameter
from huggingface_hub import constants
from packaging.requirements import Requirement
from timm.models import resolve_pretrained_cfg
from timm.models._hub import hf_split

from . import __version__
from .cli import COMMANDS, RECIPES
from .errors import in_one_line
from .inference.engines import ENGINES
from .timing import cpu_model
from .weights.checkpoint_files import read_checkpoint
from .weights.fingerprints import compare
from .weights.layouts import recognise
from .weights.pretrained import sources_of
from .weights.sources import REPO_VARIABLE, WEIGHT_FILES, Source, source_of

DISTRIBUTION = 'xception-hub'
HUB_TIMEOUT = 3.0  # seconds
WALK_TIME = 1.0  # seconds for the size of a cache
INSTRUCTIONS = ('avx2', 'avx512_f', 'avx512_vnni', 'avx_vnni', 'avx512_bf16', 'amx_bf16', 'amx_int8', 'neon', 'sve')
VARIABLES = (
    REPO_VARIABLE, 'HF_ENDPOINT', 'HF_HOME', 'HF_HUB_CACHE', 'HF_ASSETS_CACHE', 'HF_HUB_OFFLINE', 'HF_HUB_DISABLE_XET',
    'HF_TOKEN', 'TORCH_HOME', 'XDG_CACHE_HOME', 'KERAS_HOME', 'KERAS_BACKEND', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS',
    'CUDA_VISIBLE_DEVICES', 'PYTHONPATH', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'ACCELERATE_USE_CPU',
)  # fmt: skip
SECRET = re.compile('TOKEN|KEY|SECRET|PASSWORD')

Rows = dict[str, Any]  # label -> text, number, or a dict of them

app = App(help=__doc__, version_flags=[])


def system() -> Rows:
    return {
        DISTRIBUTION: f'{__version__} in {shown(Path(__file__).parent)}',
        'python': f'{platform.python_version()} in {shown(sys.prefix)}',
        'system': platform.platform(),
    }


def needed(extras: str) -> Iterator[Requirement]:
    """What the project itself needs, and what these extras, separated by commas, bring."""
    for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or []):
        if not requirement.marker or any(requirement.marker.evaluate({'extra': extra}) for extra in extras.split(',')):
            yield requirement


def version(name: str) -> str | None:
    """Version of a package, without importing it; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def packages(imported: bool) -> Rows:
    """Versions of all that commands need. Only an import shows whether a package is broken."""
    extras = ','.join(recipe.extra for recipe in RECIPES.values())
    names = sorted({requirement.name for requirement in needed(extras)})
    return {name: (imported and import_error(name)) or version(name) or 'missing' for name in names}


def import_error(name: str) -> str | None:
    """Why the modules of an installed package cannot be imported; None if they can."""
    os.environ.setdefault('KERAS_BACKEND', 'torch')  # as this project imports Keras
    modules = [module for module, owners in metadata.packages_distributions().items() if name in owners]
    try:
        for module in modules:
            importlib.import_module(module)
    except BaseException as e:  # what a broken package raises, sys.exit included
        return f'{version(name)}, BROKEN: {in_one_line(e)}'
    return None


def commands() -> Rows:
    """What is missing for each command, and what brings it."""
    rows: Rows = {}
    for command in COMMANDS:
        extra = RECIPES[command].extra if command in RECIPES else ''
        missing = [
            str(requirement).partition(';')[0].strip()
            for requirement in needed(extra)
            if not (found := version(requirement.name)) or not requirement.specifier.contains(found, prereleases=True)
        ]
        remedy = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f'pip install {DISTRIBUTION}'
        rows[command] = dict(missing=', '.join(missing), remedy=remedy) if missing else 'ready'
    return rows


def devices() -> Rows:
    capabilities: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()
    has = [name for name in INSTRUCTIONS if capabilities.get(name)]
    rows: Rows = {
        'cpu': f'{cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch',
        'instructions': ' '.join([torch.backends.cpu.get_cpu_capability(), *has]),
        'cuda': f'{torch.version.cuda or torch.version.hip or "not in this torch"}, driver {driver() or "not found"}',
        'mps': str(torch.backends.mps.is_available()),
    }
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        rows[f'cuda:{number}'] = f'{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}'
    return rows


def driver() -> str:
    """Version of NVIDIA's driver; empty without one."""
    if not (program := shutil.which('nvidia-smi')):
        return ''
    query = [program, '--query-gpu=driver_version', '--format=csv,noheader']
    return ' '.join({*subprocess.run(query, text=True, capture_output=True, timeout=10).stdout.split('\n')}).strip()


def engines() -> Rows:
    """What can run a network for inference here."""
    return {
        name: dict(missing=', '.join(missing), remedy=f"pip install '{engine.install}'")
        if (missing := engine.missing())
        else f'{engine.version() or "torch"}, on {" and ".join(engine.devices)}'
        for name, engine in ENGINES.items()
    }


def caches() -> Rows:
    places = {
        'Hub': constants.HF_HUB_CACHE,
        'datasets': os.environ.get('HF_DATASETS_CACHE', f'{constants.HF_HOME}/datasets'),
        'verified files': constants.HF_ASSETS_CACHE,
        'torch.hub': torch.hub.get_dir(),
        "Keras' release": f'{os.environ.get("XDG_CACHE_HOME", "~/.cache")}/xception_hub',
        'Keras': os.environ.get('KERAS_HOME', '~/.keras'),
    }
    return {name: cache(Path(place).expanduser()) for name, place in places.items()}


def cache(place: Path) -> str:
    """Where it is, how large, and whether it can be written."""
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    try:
        with TemporaryFile(dir=there):
            writable = 'writable'
    except OSError as e:
        writable = f'NOT writable ({e.strerror})'
    if not place.exists():
        return f'{shown(place)}, not there yet, {writable}'
    total, start, more = 0, time.monotonic(), ''
    for folder, _, names in os.walk(place):
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
        if time.monotonic() - start > WALK_TIME:
            more = 'more than '
            break
    return f'{shown(place)}, {more}{total / 2**20:.0f} MiB, {writable}'


def hub() -> Rows:
    return {
        'endpoint': shown(constants.ENDPOINT),
        'answer': answer(),
        'token': 'found' if huggingface_hub.get_token() else 'none',
    }


def answer() -> str:
    """What the Hub answers, and in which time."""
    if constants.HF_HUB_OFFLINE:
        return 'not asked, because of HF_HUB_OFFLINE'
    start = time.perf_counter()
    try:
        response = huggingface_hub.get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as e:  # of the client's library, which changes with its version
        return shown(f'NOT reachable: {in_one_line(e)}')
    return f'status {response.status_code} in {1000 * (time.perf_counter() - start):.0f} ms'


def weights() -> Rows:
    """Whether each source of the pretrained weights is on this machine, and genuine. Nothing is downloaded."""
    cfg = resolve_pretrained_cfg('xception_paper')
    own = os.environ.get(REPO_VARIABLE)
    return {shown(source): on_this_machine(source) for source in [*([source_of(own)] if own else []), *sources_of(cfg)]}


def on_this_machine(source: Source) -> str:
    try:
        path = cached(source)
        if path is None:
            return 'not on this machine; it is downloaded when it is used'
        verification = compare(recognise(read_checkpoint(path).tensors, str(source)).tensors)
    except Exception as e:  # whatever is wrong with a file is told
        return shown(f'BROKEN: {in_one_line(e)}')
    return f'{"genuine" if verification.is_genuine else "NOT genuine"}: {verification}'


def cached(source: Source) -> Path | None:
    """The file of a source if it is on this machine."""
    names = [source.filename] if source.filename else WEIGHT_FILES
    if source.kind == 'hub':
        repo, revision = hf_split(source.location)
        found = [huggingface_hub.try_to_load_from_cache(repo, name, revision=revision) for name in names]
        return next((Path(path) for path in found if isinstance(path, str)), None)
    if source.kind == 'url':
        path = Path(torch.hub.get_dir(), 'checkpoints', source.location.rpartition('/')[2])
        return path if path.is_file() else None
    return source.fetch(names)


def environment() -> Rows:
    given = {name: os.environ.get(name) or os.environ.get(name.lower()) for name in VARIABLES}
    return {name: 'set' if SECRET.search(name) else shown(value) for name, value in given.items() if value}


def shown(value: object) -> str:
    """A text without the user's name in paths, and without names and passwords in addresses."""
    return re.sub(r'(?<=://)[^/@\s]+@', '***@', str(value)).replace(str(Path.home()), '~')


def attempt(section: Callable[[], Rows]) -> Rows:
    """The rows of a section, or why there are none: what is broken is told, and stops nothing."""
    try:
        return section()
    except Exception as e:
        return {'BROKEN': shown(in_one_line(e))}


def report(imports: bool = False) -> dict[str, Rows]:
    """The whole report.

    Args:
        imports: Import each package.

    Returns:
        Title of each section -> its rows: label -> a text, or a dict with what is `missing` and its `remedy`.
    """
    sections: dict[str, Callable[[], Rows]] = {
        'System': system,
        'Environment': environment,
        'Packages': lambda: packages(imports),
        'Commands': commands,
        'Devices': devices,
        'Engines': engines,
        'Caches': caches,
        'Hub': hub,
        'Pretrained weights': weights,
    }
    return {title: attempt(section) for title, section in sections.items()}


@app.default
def main(
    *,
    json_: Annotated[bool, Parameter('--json', negative='')] = False,
    imports: Annotated[bool, Parameter(negative='')] = False,
) -> None:
    """Describe this installation, for a report of a bug. The status is 0, whatever is broken.

    Args:
        json_: Print JSON instead of Markdown.
        imports: Import each package, to find those that are broken. It takes most of a minute.
    """
    found = report(imports)
    if json_:
        print(json.dumps(found, indent=2))
        return
    for title, rows in found.items():
        print(f'\n### {title}\n')
        for label, value in rows.items():
            text = f'missing: {value["missing"]}. {value["remedy"]}' if isinstance(value, dict) else value
            print(f'- {label}: {text}')


if __name__ == '__main__':
    app()
