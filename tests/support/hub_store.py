"""Storage of the test Hub: a folder for each repository and each branch, and uploads that are not committed yet."""

import base64
import functools
import hashlib
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMIT = re.compile(r'[0-9a-f]{40}')

# Each new repository on the Hub starts with a .gitattributes that marks weights as large files.
LFS_SUFFIXES = ('.safetensors', '.bin', '.pth')
GITATTRIBUTES = ''.join(f'*{suffix} filter=lfs diff=lfs merge=lfs -text\n' for suffix in LFS_SUFFIXES)


@functools.cache
def _sha256(path: Path, changed_ns: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def etag_of(path: Path) -> str:
    """ETag of a file: the sha256 of its content, computed once for each content."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


def commit_of(folder: Path) -> str:
    """Commit of a folder: 40 hexadecimal digits that change whenever a file changes."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return hashlib.sha1(repr([(str(f.relative_to(folder)), etag_of(f)) for f in files]).encode()).hexdigest()


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Content of the small file that git keeps in place of a large one."""
    return f'version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n'.encode()


@dataclass
class Store:
    """Folder that holds all repositories of a Hub.

    Attributes:
        root: Folder with `ORG/NAME@REVISION`, `ORG/NAME` for all other revisions, and plain files in `files`.
        private: Names of the repositories that only a token opens.
        objects: sha256 -> content of each large file that was uploaded but not yet committed.
    """

    root: Path
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)

    def folder_of(self, repo: str, revision: str) -> Path | None:
        """Folder that a download reads, which may pin any commit. None if there is no such repository."""
        folders = (self.root / name for name in (f'{repo}@{revision}', repo))
        return next((folder for folder in folders if folder.is_dir()), None)

    def branch(self, repo: str, revision: str) -> Path | None:
        """Folder of a branch, found by the branch's name or its last commit. None if there is no such branch."""
        main = self.root / repo
        branches = [main, *sorted(main.parent.glob(f'{main.name}@*'))]
        names = ('main', *(folder.name.partition('@')[2] for folder in branches[1:]))
        return next(
            (
                folder
                for name, folder in zip(names, branches)
                if folder.is_dir() and revision in (name, commit_of(folder))
            ),
            None,
        )

    def create(self, repo: str, private: bool) -> None:
        (self.root / repo).mkdir(parents=True)
        (self.root / repo / '.gitattributes').write_text(GITATTRIBUTES)
        if private:
            self.private.add(repo)

    def create_branch(self, repo: str, name: str) -> None:
        shutil.copytree(self.root / repo, self.root / f'{repo}@{name}')

    def tree(self, folder: Path, below: str, recursive: bool) -> list[dict[str, Any]]:
        """Entries of a folder of a repository, as the Hub lists them."""
        paths = (folder / below).rglob('*') if recursive else (folder / below).glob('*')
        return [self._entry(folder, path) for path in sorted(paths)]

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        if path.is_dir():
            return dict(type='directory', path=str(path.relative_to(folder)), size=0, oid='0' * 40)
        size, entry = path.stat().st_size, dict(type='file', path=str(path.relative_to(folder)))
        if path.suffix not in LFS_SUFFIXES:
            return dict(entry, size=size, oid=git_blob_id(path.read_bytes()))
        pointer = lfs_pointer(etag_of(path), size)
        lfs = dict(oid=etag_of(path), size=size, pointerSize=len(pointer))
        return dict(entry, size=size, oid=git_blob_id(pointer), lfs=lfs)

    def commit(self, folder: Path, operations: list[dict[str, Any]]) -> str:
        """Writes and deletes the files of a commit. Changes nothing if one of its large files was not uploaded.

        Raises:
            KeyError: The large file with this sha256 was not uploaded.
        """
        read = {
            'file': lambda value: base64.b64decode(value['content']),
            'lfsFile': lambda value: self.objects[value['oid']],
            'deletedFile': lambda value: None,
        }
        contents = [(folder / line['value']['path'], read[line['key']](line['value'])) for line in operations]
        for path, content in contents:
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        self.objects.clear()
        return commit_of(folder)
