"""The house: recipes on top, parts below, and arrows that only point down."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

# From the ground up. A module may import from its own part and from the floors below.
FLOORS = [
    ['allocator', 'errors', 'files', 'timing', 'topology'],
    ['file_kinds', 'images'],
    ['layers'],
    ['head', 'modules'],
    ['network'],
    ['pyramid'],
    ['weights'],
    ['xception_paper'],
    ['__init__'],
    ['directory'],
    ['data'],
    ['models'],
    ['inference'],
    ['porting', 'training', 'paper'],
    ['run', 'stand_ins'],
    ['cli'],
    ['doctor'],
    ['__main__'],
    ['recipes'],
]
RECIPES = ['finetune.py', 'hubconf.py', 'conversion', 'benchmarks', 'examples']
# Heavy packages -> the parts and recipes that may import them, at the top of a module or when they are called.
HEAVY = {
    'accelerate': {'training'},
    'captum': {'inference'},
    'datasets': {'data', 'examples', 'benchmarks'},
    'torchmetrics': {'training'},
    'h5py': {'porting'},
    'keras': {'porting', 'benchmarks'},
    'tensorflow': set(),
}
TWICE = {'weights'}  # names of two modules, until porting/ has another
LIGHT_ROOM = {  # what figure 5 is made of
    'collections.abc',
    'contextlib',
    'functools',
    'json',
    'math',
    'timm',
    'torch',
    'typing',
    'xception_hub.head',
    'xception_hub.layers',
    'xception_hub.modules',
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts)


@cache
def modules() -> dict[str, Path]:
    """Name -> file of all modules of the package, and of the recipes, as they lie in a clone."""
    files = list((ROOT / 'xception_hub').rglob('*.py'))
    for recipe in RECIPES:
        path = ROOT / recipe
        files += [path] if path.is_file() else list(path.glob('*.py'))
    return {module_name(path): path for path in files}


def imports(name: str) -> set[str]:
    """Everything that a module imports, anywhere in it, by full names; a name in a package may be a module of it."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split('.')[: -node.level] if node.level else []
            base = '.'.join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f'{base}.{alias.name}'
                found.add(full if full in modules() or f'{full}.__init__' in modules() else base)
    return found


def own(names: set[str]) -> set[str]:
    """Those that are modules of this project."""
    return {found for name in names for found in (name, f'{name}.__init__') if found in modules()}


def part(name: str) -> str:
    """'xception_hub.porting.port' -> 'porting'; 'conversion.convert' -> 'recipes'."""
    parts = name.split('.')
    return parts[1] if parts[0] == 'xception_hub' else 'recipes'


def floor(name: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part(name) in parts)


@pytest.mark.parametrize('name', sorted(modules()))
def test_arrows_point_down(name: str) -> None:
    for target in own(imports(name)):
        same_room = part(name) == part(target)
        assert same_room or floor(target) < floor(name), f'{name} imports {target}, which is not below'


def test_no_circle() -> None:
    graph = {name: own(imports(name)) - {name} for name in modules()}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f'these import each other: {sorted(graph)}'


def test_no_name_twice() -> None:
    """A module of the package is known by its own name, whatever folder it is in; so is a folder."""
    names = [name.split('.')[-1] for name in modules() if name.startswith('xception_hub.') and '__' not in name]
    names += [path.parent.name for path in (ROOT / 'xception_hub').glob('*/__init__.py')]
    assert {name for name in names if names.count(name) > 1} <= TWICE


def test_network_is_made_of_layers() -> None:
    for name in imports('xception_hub.network'):
        assert any(name == room or name.startswith(f'{room}.') for room in LIGHT_ROOM), name


@pytest.mark.parametrize('name', sorted(modules()))
def test_heavy_packages_stay_in_their_parts(name: str) -> None:
    for target in imports(name):
        top = target.partition('.')[0]
        if top in HEAVY:
            allowed = HEAVY[top]
            assert part(name) in allowed or name.split('.')[0] in allowed, f'{name} imports {target}'


def test_import_is_light() -> None:
    """`import xception_hub` brings in nothing that timm does not, beside its own modules; the tool little more."""
    modules = 'print(*sys.modules)'
    code = f'import sys, timm; {modules}; import xception_hub; {modules}; import xception_hub.cli; {modules}'
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True, check=True)
    timm, package, tool = ({name.partition('.')[0] for name in line.split()} for line in result.stdout.splitlines())
    assert not (package - timm) & {*HEAVY, 'cyclopts', 'rich', 'conversion', 'jinja2', 'matplotlib'}
    assert not tool & {*HEAVY, 'matplotlib', 'jinja2', 'onnx'} and 'xception_hub.inference' not in result.stdout.split()
