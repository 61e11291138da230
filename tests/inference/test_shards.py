"""A table in parts: nothing is lost or doubled, whoever writes, is killed or comes twice."""

import os
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas
import pytest
from filelock import FileLock
from forked import CONTEXT
from patience import patience
from pyarrow import parquet
from random_model import save_small
from small_images import save_pieces

from xception_hub.inference import predict

COUNT, SHARD_SIZE, BATCH_SIZE = 22, 6, 4  # images; four parts, the last of which is smaller
PARTS = [f'part-0000{number}-of-00004.parquet' for number in range(4)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    return save_small(tmp_path_factory.mktemp('model'), ['cup', 'fork', 'glass', 'plate'])


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, one of which is truncated."""
    folder = tmp_path_factory.mktemp('photos')
    bad = save_pieces(folder, COUNT, 48)[9]
    bad.write_bytes(bad.read_bytes()[:1000])
    return folder


@pytest.fixture(scope='module')
def rows(folder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process writes that nothing disturbs."""
    output = tmp_path_factory.mktemp('whole') / 'shards'
    run(folder, photos, output)
    assert sorted(path.name for path in output.iterdir()) == ['_shards.json', *PARTS]
    return rows_of(output)


def run(folder: Path, photos: Path, output: Path, **options: Any) -> None:
    given = dict(batch_size=BATCH_SIZE, shard_size=SHARD_SIZE, device='cpu', workers=2)
    predict.main(str(photos), model=str(folder), output=output, **{**given, **options})


def process(environment: Mapping[str, str], *arguments: Any, **options: Any) -> Any:
    """`run` in a process of its own, as launchers start it."""
    started = CONTEXT.Process(target=_process, args=(dict(environment), arguments, options))
    started.start()
    return started


def _process(environment: dict[str, str], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    os.environ.update(environment)
    if 'LARGEST_FILE' in environment:  # a disk that is full from there on
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(environment['LARGEST_FILE']),) * 2)
    run(*arguments, **options)


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(output.glob('part-*.parquet')) for row in parquet.read_table(path).to_pylist()]


def test_rows(photos: Path, rows: list[dict[str, Any]]) -> None:
    """All images in order, each once."""
    assert [row['file'] for row in rows] == [str(path) for path in sorted(photos.iterdir())]
    assert [bool(row['error']) for row in rows] == [number == 9 for number in range(COUNT)]


def test_two_processes(folder: Path, photos: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Started as `accelerate launch` and torchrun do it; batches are cut by part."""
    output = tmp_path / 'shards'
    started = [
        process(dict(RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2'), folder, photos, output, workers=None)
        for rank in range(2)
    ]
    for one in started:
        one.join(patience(120))
    assert [one.exitcode for one in started] == [0, 0]
    assert rows_of(output) == rows


def test_killed(
    folder: Path, photos: Path, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a part. The same command writes the rest, and leaves what is there as it is."""
    output = tmp_path / 'shards'
    killed = process({}, folder, photos, output, batch_size=BATCH_SIZE)
    first = output / PARTS[0]
    end = time.monotonic() + patience(60)
    while not first.is_file():
        assert killed.is_alive() and time.monotonic() < end
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    there = {path.name: path.stat().st_mtime_ns for path in output.glob('*.parquet')}
    assert PARTS[0] in there
    run(folder, photos, output)
    assert f'{len(there)} there before' in capsys.readouterr().err
    assert rows_of(output) == rows
    assert all((output / name).stat().st_mtime_ns == written for name, written in there.items())
    assert sorted(path.name for path in output.iterdir()) == ['_shards.json', *PARTS]


def test_two_runs_at_once(
    folder: Path, photos: Path, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What one is writing is left to it."""
    output = tmp_path / 'shards'
    output.mkdir()
    with FileLock(output / '.1.lock'):
        run(folder, photos, output)
        assert sorted(path.name for path in output.glob('*.parquet')) == [PARTS[0], PARTS[2], PARTS[3]]
        assert 'Parts: 3 written, 0 there before, 1 left to other processes' in capsys.readouterr().err
        run(folder, photos, output)
        said = capsys.readouterr().err
        assert 'Parts: 0 written, 3 there before, 1 left to other processes' in said and 'img/s' not in said
    run(folder, photos, output)
    assert rows_of(output) == rows


def test_read_as_a_directory(
    folder: Path, photos: Path, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By pandas, which skips names that begin with an underscore; a directory of version 0.2 becomes like it."""
    output = tmp_path / 'shards'
    run(folder, photos, output)
    (output / '_shards.json').rename(output / 'shards.json')
    capsys.readouterr()
    run(folder, photos, output)
    said = capsys.readouterr().err
    assert f'All 4 parts are there, none is left to write: {output}' in said and 'img/s' not in said
    assert sorted(path.name for path in output.iterdir()) == ['_shards.json', *PARTS]
    assert pandas.read_parquet(output).file.tolist() == [row['file'] for row in rows]


def test_damaged(folder: Path, photos: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """A part that others have cut short is written again."""
    output = tmp_path / 'shards'
    run(folder, photos, output)
    part = output / PARTS[2]
    part.write_bytes(part.read_bytes()[:-20])
    run(folder, photos, output)
    assert rows_of(output) == rows


def test_full_disk(folder: Path, photos: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """An error, and nothing that is half there. It goes on when there is space again."""
    output = tmp_path / 'shards'
    full = process(dict(LARGEST_FILE='1500'), folder, photos, output)
    full.join(patience(60))
    assert full.exitcode == 1
    assert not list(output.glob('part-*'))
    run(folder, photos, output)
    assert rows_of(output) == rows


def test_refused(folder: Path, photos: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Other settings, another model or other images in the directory of a run, and what is no directory of one."""
    output = tmp_path / 'shards'
    run(folder, photos, output)
    other = save_small(tmp_path / 'other', list('abcd'), seed=1)
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'a.txt').write_text('text')
    (tmp_path / 'file').write_text('text')
    (tmp_path / 'empty').mkdir()
    for arguments, options, said in (
        ((folder, photos, output), dict(top=2), 'top is 5 there and 2 here. Name another --output'),
        ((folder, photos, output), dict(shard_size=5), 'shard_size is 6 there and 5 here'),
        ((other, photos, output), {}, 'weights is '),
        ((folder, next(photos.iterdir()), output), {}, 'images_digest is '),
        ((folder, photos, tmp_path / 'notes'), {}, 'contains files that are not shards. Name another --output'),
        ((folder, photos, tmp_path / 'file'), {}, 'cannot be used'),
        ((folder, photos, tmp_path / 'file' / 'shards'), {}, 'cannot be used'),
        ((folder, tmp_path / 'empty', tmp_path / 'new'), {}, 'no image'),
        ((folder, photos, tmp_path / 'new'), dict(shard_size=0), 'shard_size is 0'),
    ):
        with pytest.raises(SystemExit) as ended:
            run(*arguments, **options)
        assert said in str(ended.value)
    assert rows_of(output) == rows and not (tmp_path / 'new').exists()


def test_several_processes_need_a_directory(folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WORLD_SIZE', '2')
    for output in (None, Path('rows.csv')):
        with pytest.raises(SystemExit) as ended:
            predict.main(str(photos), model=str(folder), output=output)
        assert '2 processes write a table in parts: name a directory as --output' in str(ended.value)
