"""xception-hub doctor

Describes this installation for a bug report: what each extra lacks, engines, the pretrained weights, and the reports of
torch and of the Hub's client. Tokens and passwords are left out.
"""

import io
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import huggingface_hub
import torch
from cyclopts import App, Parameter
from huggingface_hub import constants
from packaging.requirements import Requirement
from timm.models import resolve_pretrained_cfg
from timm.models._hub import hf_split
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
HUB_TIMEOUT = 3.0  # seconds

Rows = dict[str, str]  # label -> what was found

app = App(help=__doc__, version_flags=[])


def system() -> Rows:
    return {DISTRIBUTION: f'{__version__} in {Path(__file__).parent}', 'python': f'{sys.version} in {sys.prefix}'}


def extras() -> Rows:
    """The packages of each extra with their versions, or those that are missing, and what brings them."""
    requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    rows = {}
    for extra in ['', *sorted({*(metadata.metadata(DISTRIBUTION).get_all('Provides-Extra') or [])} - FOR_DEVELOPERS)]:
        needed = [r for r in requirements if (r.marker.evaluate({'extra': extra}) if r.marker else not extra)]
        found = {r: version(r.name) for r in needed}
        missing = [r for r in needed if not r.specifier.contains(found[r] or '', prereleases=True)]
        name = f'{DISTRIBUTION}[{extra}]' if extra else DISTRIBUTION
        rows[name] = (
            f"missing: {', '.join(f'{r.name}{r.specifier}' for r in missing)}. pip install '{name}'"
            if missing
            else ', '.join(f'{r.name} {found[r]}' for r in needed)
        )
    return rows


def version(name: str) -> str | None:
    """Version of a package, without importing it; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def engines() -> Rows:
    """What can run a network for inference on this machine."""
    return {
        name: f"missing: {', '.join(missing)}. pip install '{engine.install}'"
        if (missing := engine.missing())
        else f'{engine.version() or "torch"}, on {" and ".join(engine.devices)}'
        for name, engine in ENGINES.items()
    }


def hub() -> Rows:
    """Whether the Hub answers, and its client's own report."""
    with redirect_stdout(io.StringIO()):
        found = huggingface_hub.utils.dump_environment_info()
    return {'answer': answer(), **{label: str(value) for label, value in found.items()}}


def answer() -> str:
    if constants.HF_HUB_OFFLINE:
        return 'not asked, because of HF_HUB_OFFLINE'
    try:
        return f'status {huggingface_hub.get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT).status_code}'
    except Exception as e:  # of the client's library, which changes with its version
        return f'NOT reachable: {in_one_line(e)}'


def weights() -> Rows:
    """Whether each source of the pretrained weights is on this machine, and genuine. Nothing is downloaded."""
    own = os.environ.get(REPO_VARIABLE)
    sources = [*([source_of(own)] if own else []), *sources_of(resolve_pretrained_cfg('xception_paper'))]
    return {str(source): attempt(partial(on_this_machine, source)) for source in sources}


def on_this_machine(source: Source) -> str:
    path = cached(source)
    if path is None:
        return 'not on this machine; it is downloaded when it is used'
    verification = compare(recognise(read_checkpoint(path).tensors, str(source)).tensors)
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


def attempt(section: Callable[[], Any]) -> Any:
    """What a section finds, or why it finds nothing: what is broken stops nothing."""
    try:
        return section()
    except Exception as e:
        return f'BROKEN: {in_one_line(e)}'


SECTIONS: dict[str, Callable[[], Rows]] = {
    'System': system,
    'Extras': extras,
    'Engines': engines,
    'Pretrained weights': weights,
    'Hub': hub,
    'Torch': lambda: {label: str(value) for label, value in collect_env.get_env_info()._asdict().items()},
}


def shown(value: Any) -> Any:
    """A text without the user's name in paths, and without names and passwords in addresses; a dict of such texts."""
    if isinstance(value, dict):
        return {shown(label): shown(row) for label, row in value.items()}
    return re.sub(r'(?<=://)[^/@\s]+@', '***@', value).replace(str(Path.home()), '~')


@app.default
def main(*, json_: Annotated[bool, Parameter('--json', negative='')] = False) -> None:
    """Describe this installation for a bug report. The exit status is 0, whatever is broken.

    Args:
        json_: Print JSON instead of Markdown.
    """
    found = {title: shown(attempt(section)) for title, section in SECTIONS.items()}
    if json_:
        print(json.dumps(found, indent=2))
        return
    for title, rows in found.items():
        print(f'\n### {title}\n')
        for label, value in rows.items() if isinstance(rows, dict) else [(title, rows)]:
            print(f'- {label}: {value}')


if __name__ == '__main__':
    app()
