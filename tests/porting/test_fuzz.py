"""Damaged and hostile files, thousands of them: each gives the right arrays, or one error that says what is wrong.

Nothing else comes of any: no other exception, no crash, no loop without end, no more than a gigabyte, nothing read,
written or run outside, nothing half written. Files are read in processes that such things would happen to.
"""

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import keras_files
import pytest
import small_files
from conftest import ROOT
from damages import (
    ARCHIVES,
    ARRAYS,
    BLOCKS,
    BYTES,
    CONFIGS,
    FILES,
    GROUPS,
    SHAPES,
    SHARDS,
    Case,
    Damage,
    Outside,
    of_a_file,
    of_hdf5,
)
from patience import patience
from small_files import Base

SEED = os.environ.get('FUZZ_SEED', '20161007')
REPEATS = float(os.environ.get('FUZZ_REPEATS', 1))  # how many times as many cases
ONLY = os.environ.get('FUZZ_ONLY', '')  # the name of a case

PROCESSES = 2
MOST_SECONDS = 10  # of computing for one case
PATIENCE = 40  # seconds until a process that says nothing is ended; others may be using the machine
MOST_MEGABYTES = 1024
MOST_CHARACTERS = 2100

XCEPTIONS: dict[str, tuple[Callable[[Any, Path], Path], str, bool]] = {
    writer.__name__: (writer, model, with_config)
    for writer, model, with_config in (
        (keras_files.archive, 'nested', False),
        (keras_files.archive_without_names, 'sequential', False),
        (keras_files.whole_h5, 'flat_with_head', False),
        (keras_files.whole_h5_of_keras2, 'nested', False),
        (keras_files.weights_h5, 'flat_with_top', False),
        (keras_files.weights_h5_of_tensorflow_2_12, 'sequential', True),
        (keras_files.weights_of_keras2, 'flat_with_top', False),
        (keras_files.shards, 'flat_with_top', False),
        (keras_files.preset, 'flat_with_top', False),
        (small_files.release, 'flat_with_top', False),
    )
}
PLAIN = {'old format': 'earliest', 'new format': 'latest'}

ARCHIVED = ('archive', 'archive_without_names')
WITH_CONFIG = (*ARCHIVED, 'whole_h5', 'whole_h5_of_keras2', 'weights_h5_of_tensorflow_2_12')

# Kind -> what is done, to which files, and how often to each.
PLAN: dict[str, list[tuple[dict[str, Damage], tuple[str, ...], float]]] = {
    'bytes': [
        ({name: of_a_file(change) for name, change in BYTES.items()}, tuple(XCEPTIONS), 2),
        ({name: of_hdf5(change) for name, change in BYTES.items()}, ARCHIVED, 2),
        ({name: of_hdf5(change) for name, change in BYTES.items()}, tuple(PLAIN), 16),
    ],
    'blocks': [(BLOCKS, tuple(PLAIN), 16), (BLOCKS, tuple(XCEPTIONS), 0.3)],
    'arrays': [(ARRAYS, tuple(PLAIN), 2), ({**ARRAYS, **SHAPES}, tuple(XCEPTIONS), 0.3)],
    'groups': [(GROUPS, tuple(XCEPTIONS), 0.3)],
    'archives': [(ARCHIVES, ARCHIVED, 1)],
    'configs': [(CONFIGS, WITH_CONFIG, 2)],
    'files': [(FILES, ('shards', 'preset'), 8), (SHARDS, ('shards',), 1)],
}
MOVING = ('nodes', 'settings', 'layer', 'names', 'fed', 'text')  # may give an array to another layer of its shape


@dataclass(frozen=True)
class Spec:
    """One case: everything about it follows from its name and the seed."""

    kind: str
    damage: str
    base: str
    number: int

    @property
    def name(self) -> str:
        return f'{self.kind}: {self.damage}: {self.base}: {self.number}'

    def __str__(self) -> str:
        again = f'FUZZ_SEED={SEED} FUZZ_ONLY="{self.name}" pytest -n 0 -m slow tests -k {self.kind}'
        return f'{self.name}\n    {again}'


def specs(kind: str, share: float) -> Iterator[tuple[Spec, Damage]]:
    """Where a damage is to be done less than once to each file, it is done to some of them."""
    choice = Random(f'{SEED} {kind}')
    for table, bases, often in PLAN[kind]:
        for (damage, function), base in itertools.product(table.items(), bases):
            count = often * REPEATS * share
            for number in range(int(count) + (choice.random() < count % 1)):
                spec = Spec(kind, damage, base, number)
                if ONLY in ('', spec.name):
                    yield spec, function


# Files


@pytest.fixture(scope='session')
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outside:
    folder = tmp_path_factory.mktemp('outside')
    outside = Outside(folder / 'pipe', folder / 'secret.h5', folder / 'proof')
    os.mkfifo(outside.pipe)
    small_files.secret(outside.secret)
    return outside


@pytest.fixture(scope='session')
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp('bases')
    models = {name: small_files.with_few_values(keras_files.MODELS[name]()) for _, name, _ in XCEPTIONS.values()}
    made = {
        name: small_files.make_base(folder / name, write, models[model], config)
        for name, (write, model, config) in XCEPTIONS.items()
    }
    return made | {name: small_files.every_storage(folder / name, libver) for name, libver in PLAIN.items()}


# Processes


class Worker:
    """A process that reads cases; another one, if the last was lost."""

    def __init__(self, practice: Path) -> None:
        self._practice = practice
        self._process: Any = None

    def ask(self, case: dict[str, Any], seconds: float = PATIENCE) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, ROOT / 'tests' / 'support' / 'fuzz_worker.py', self._practice],
                start_new_session=True,
                env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._process.stdout.readline()
        self._process.stdin.write(json.dumps(case) + '\n')
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], patience(seconds))[0]:
            self.close()
            return dict(outcome=f'no answer in {patience(seconds):.0f} s')
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.close()
            return dict(outcome=f'ended by {signal.Signals(-code).name if code < 0 else code}')
        result: dict[str, Any] = json.loads(line)
        if result['megabytes'] > MOST_MEGABYTES or result['outcome'] == 'failed':
            self.close()
        return result

    def close(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None


@pytest.fixture(scope='session')
def workers(bases: dict[str, Base]) -> Iterator['SimpleQueue[Worker]']:
    practice = bases['archive'].folder / 'files' / bases['archive'].source
    made = [Worker(practice) for _ in range(PROCESSES)]
    queue: SimpleQueue[Worker] = SimpleQueue()
    for worker in made:
        queue.put(worker)
    yield queue
    for worker in made:
        worker.close()


# Judgement


def complaints(spec: Spec, result: dict[str, Any], folder: Path, named: str | None) -> Iterator[str]:
    """What a case did that it must not."""
    if result['outcome'] not in ('read', 'refused'):
        yield f'{result["outcome"]} {result.get("message", "")}'
        return
    if result['events']:
        yield f'Python did {result["events"][:5]}'
    if result['megabytes'] > MOST_MEGABYTES or result['seconds'] > MOST_SECONDS:
        yield f'took {result["megabytes"]} MB, {result["seconds"]} s'
    if result['wrong']:
        yield f'{len(result["wrong"])} arrays are wrong, such as {result["wrong"][:3]}'
    message = result['message']
    if result['outcome'] == 'read' and named is not None:
        yield 'was read'
    if result['outcome'] == 'refused':
        if str(folder) not in message or (named or '') not in message:
            yield f'is refused without {named or folder}: {message}'
        if not message.isprintable() or len(message) > MOST_CHARACTERS:
            yield f'is refused with {message[:300]!r}'


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob('*')}


def judged(
    spec: Spec, damage: Damage, bases: dict[str, Base], folder: Path, outside: Outside, worker: Worker
) -> list[str]:
    """Does the damage, has the file read, and says what was not as it must be."""
    base, random = bases[spec.base], Random(f'{SEED} {spec.name}')
    shutil.copytree(base.folder / 'files', folder)
    case = Case(base, folder, random, outside)
    named = damage(case)
    task = 'arrays' if spec.base in PLAIN else random.choice(('port', 'port', 'command'))
    before = listing(folder.parent), listing(outside.pipe.parent)
    result = worker.ask(
        dict(
            task=task,
            source=str(case.source),
            config=str(folder / base.config) if base.config else None,
            name=spec.name,
            folder=str(folder),
            base=str(base.folder),
            moves=spec.kind == 'configs',
        )
    )
    found = [*complaints(spec, result, folder, named)]
    if (listing(folder.parent), listing(outside.pipe.parent)) != before:
        found.append('left or changed a file')
    shutil.rmtree(folder)
    return found


# a sample, and a large one; FUZZ_REPEATS makes it larger
@pytest.mark.parametrize('share', [0.02, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', PLAN)
def test_fuzz(
    kind: str, share: float, bases: dict[str, Base], workers: 'SimpleQueue[Worker]', outside: Outside, tmp_path: Path
) -> None:
    def run(numbered: tuple[int, tuple[Spec, Damage]]) -> tuple[Spec, list[str]]:
        number, (spec, damage) = numbered
        worker = workers.get()
        try:
            folder = tmp_path / str(number) / 'case'
            folder.parent.mkdir()
            return spec, judged(spec, damage, bases, folder, outside, worker)
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(PROCESSES) as pool:
        found = [(spec, what) for spec, what in pool.map(run, enumerate(specs(kind, share))) if what]
    assert not found, '\n'.join(f'{spec}\n    {" | ".join(what)}' for spec, what in found)
