"""xception-hub doctor

Describes this installation for a bug report: what each extra lacks, engines, the pretrained weights, and the reports of
the Hub's client and of torch. Tokens and passwords are left out.
"""

import io
import os
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub
from cyclopts import App
from packaging.requirements import Requirement
from timm.models import resolve_pretrained_cfg
from torch.utils import collect_env

from . import __version__
from .errors import in_one_line
from .inference.engines import ENGINES
from .weights.checkpoint_files import read_checkpoint
from .weights.fingerprints import compare
from .weights.lineages import recognise
from .weights.pretrained import sources_of
from .weights.sources import REPO_VARIABLE, WEIGHT_FILES, Source, source_of

DISTRIBUTION = 'xception-hub'
FOR_DEVELOPERS = {'docs', 'lint', 'test', 'test-all'}  # extras

Rows = dict[str, str]  # label -> finding

app = App(help=__doc__, version_flags=[])


def extras() -> Rows:
    """The packages of each extra with their versions, or the missing ones with the command that installs them."""
    requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    rows = {'version': f'{__version__} in {Path(__file__).parent}'}
    for extra in ['', *sorted({*(metadata.metadata(DISTRIBUTION).get_all('Provides-Extra') or [])} - FOR_DEVELOPERS)]:
        needed = [r for r in requirements if (r.marker.evaluate({'extra': extra}) if r.marker else not extra)]
        found = {r: version(r.name) for r in needed}
        missing = [r for r in needed if not (found[r] and r.specifier.contains(found[r], prereleases=True))]
        name = f'{DISTRIBUTION}[{extra}]' if extra else DISTRIBUTION
        rows[name] = ', '.join(f'{r.name} {found[r]}' for r in needed)
        if missing:
            rows[name] = f"missing: {', '.join(f'{r.name}{r.specifier}' for r in missing)}. pip install '{name}'"
    return rows


def version(name: str) -> str:
    """Version of a package, without importing it; '' if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ''


def engines() -> Rows:
    """What can run a network on this machine."""
    return {
        name: f"missing: {', '.join(missing)}. pip install '{engine.install}'"
        if (missing := engine.missing())
        else f'{engine.version() or "torch"}, on {" and ".join(engine.devices)}'
        for name, engine in ENGINES.items()
    }


def weights() -> Rows:
    """Whether each source of the pretrained weights is on this machine, and genuine. Nothing is downloaded."""
    own = os.environ.get(REPO_VARIABLE)
    sources = [*([source_of(own)] if own else []), *sources_of(resolve_pretrained_cfg('xception_paper'))]
    return {str(source): attempt(partial(on_this_machine, source)) for source in sources}


def on_this_machine(source: Source) -> str:
    try:
        with patch.object(huggingface_hub.constants, 'HF_HUB_OFFLINE', True):
            path = source.fetch([source.filename] if source.filename else WEIGHT_FILES)
    except (FileNotFoundError, ConnectionError):
        if source.kind == 'path':
            raise
        return 'not on this machine; it is downloaded when it is used'
    verification = compare(recognise(read_checkpoint(path).tensors, str(source)).tensors)
    return f'{"genuine" if verification.is_genuine else "NOT genuine"}: {verification}'


def hub() -> dict[str, Any]:
    """The report of the Hub's client, which it also prints."""
    with redirect_stdout(io.StringIO()):
        return huggingface_hub.utils.dump_environment_info()


def attempt(section: Callable[[], Any]) -> Any:
    """What a section finds, or its error, which must not stop the others."""
    try:
        return section()
    except Exception as e:
        return f'BROKEN: {in_one_line(e)}'


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    'Packages': extras,
    'Engines': engines,
    'Pretrained weights': weights,
    'Hub': hub,
    'Torch': lambda: collect_env.get_env_info()._asdict(),
}


def report() -> str:
    """The findings as Markdown, without the user's name in paths, and without names and passwords in addresses."""
    lines = []
    for title, section in SECTIONS.items():
        found = attempt(section)
        rows = found.items() if isinstance(found, dict) else [(title, found)]
        lines += [f'\n### {title}\n', *(f'- {label}: {value}' for label, value in rows)]
    return re.sub(r'(?<=://)[^/@\s]+@', '***@', '\n'.join(lines)).replace(str(Path.home()), '~')


@app.default
def main() -> None:
    """Describe this installation for a bug report. The exit status is 0, whatever is broken."""
    print(report())


if __name__ == '__main__':
    app()
