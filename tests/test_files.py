"""Files are there as a whole or not at all."""

import hashlib
import os
from pathlib import Path

import pytest
from forked import CONTEXT

from xception_hub.files import replacing, sha256_of, write_text


def killed_while_writing(file: Path) -> None:
    with replacing(file) as part:
        part.write_text('half')
        os.kill(os.getpid(), 9)


def test_replaced(tmp_path: Path) -> None:
    """With the mode that the umask asks for, and nothing beside it."""
    file = tmp_path / 'folder' / 'file.json'
    write_text(file, 'old')
    with replacing(file) as part:
        part.write_text('new')
        assert file.read_text() == 'old'
    assert file.read_text() == 'new' and os.listdir(file.parent) == ['file.json']
    (tmp_path / 'plain').touch()
    assert file.stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_failed(tmp_path: Path) -> None:
    file = tmp_path / 'file.json'
    write_text(file, 'old')
    with pytest.raises(UnicodeEncodeError):
        write_text(file, 'half\ud800')
    assert file.read_text() == 'old' and os.listdir(tmp_path) == ['file.json']
    with pytest.raises(FileNotFoundError), replacing(file):
        pass  # nothing was written


def test_killed(tmp_path: Path) -> None:
    file = tmp_path / 'file.json'
    write_text(file, 'old')
    process = CONTEXT.Process(target=killed_while_writing, args=(file,))
    process.start()
    process.join()
    assert process.exitcode == -9 and file.read_text() == 'old'


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match='file'):
        write_text(tmp_path / 'file' / 'below', '')


def test_sha256(tmp_path: Path) -> None:
    contents = [b'a' * 3_000_000, b'b' * 3_000_000]  # more than one block each
    for name, content in zip('ab', contents):
        (tmp_path / name).write_bytes(content)
    assert (
        sha256_of([tmp_path / 'a', tmp_path / 'b']) == hashlib.sha256(b'a' * 3_000_000 + b'b' * 3_000_000).hexdigest()
    )
