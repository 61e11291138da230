"""A Hugging Face Hub on this machine: real HTTP, and the download API as huggingface_hub calls it.

    with HubServer(folder) as hub:  # HF_ENDPOINT=hub.url
        hub.faults['model.safetensors'] = Fault.HALF
"""
import enum
import functools
import hashlib
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = re.compile(r'[0-9a-f]{40}')


class Fault(enum.Enum):
    """What goes wrong with a request."""

    NOT_FOUND = 404  # without the hub's own error code, as from a proxy; for a file that isn't there, remove it
    SERVER_ERROR = 500
    HALF = 'the answer declares its full length and ends in the middle'
    CLOSED = 'the connection is closed without an answer'


@functools.cache
def _sha256(path: Path, changed_ns: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def etag_of(path: Path) -> str:
    """The hub's name for a file's content, its sha256; computed once per content."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


def commit_of(folder: Path) -> str:
    """40 hexadecimal digits that change with what a repository holds."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return hashlib.sha1(repr([(str(f.relative_to(folder)), etag_of(f)) for f in files]).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One method per endpoint; `ROUTES` says which."""

    ROUTES = (
        (re.compile(r'/files/(?P<name>.+)'), 'plain_file'),
        (re.compile(r'/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)'), 'resolve'),
    )
    protocol_version = 'HTTP/1.1'
    server: 'HubServer'

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        fault = self.server.fault_of(path)
        if fault is Fault.CLOSED:
            self.close_connection = True
        elif fault in (Fault.NOT_FOUND, Fault.SERVER_ERROR):
            self.answer(fault.value)
        else:
            self.route(path)

    def route(self, path: str) -> None:
        for pattern, endpoint in self.ROUTES:
            if match := pattern.fullmatch(path):
                getattr(self, endpoint)(**{key: unquote(value) for key, value in match.groupdict().items()})
                return
        self.answer(404)

    do_HEAD = do_GET

    def plain_file(self, name: str) -> None:
        """GET /files/NAME: the file of that name in the folder `files`."""
        path = self.server.root / 'files' / name
        if path.is_file():
            self.send_file(path)
        else:
            self.answer(404)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        """HEAD and GET /ORG/NAME/resolve/REVISION/FILE."""
        folder = self.server.folder_of(repo, revision)
        if folder is None:
            other_revisions = any(self.server.root.glob(f'{repo}@*'))
            self.answer(404, {'X-Error-Code': 'RevisionNotFound' if other_revisions else 'RepoNotFound'})
        elif not (folder / name).is_file():
            self.answer(404, {'X-Error-Code': 'EntryNotFound'})
        else:
            commit = revision if COMMIT.fullmatch(revision) else commit_of(folder)
            self.send_file(folder / name, {'X-Repo-Commit': commit})

    def send_file(self, path: Path, headers: dict[str, str] | None = None) -> None:
        """The file, from where a Range header asks to go on."""
        size, asked = path.stat().st_size, re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        start = min(int(asked.group(1)), size) if asked else 0
        headers = {'ETag': f'"{etag_of(path)}"', 'Content-Length': str(size - start), **(headers or {})}
        if asked:
            headers['Content-Range'] = f'bytes {start}-{size - 1}/{size}'
        self.send_head(206 if asked else 200, headers)
        if self.command == 'GET':
            truncated = self.server.fault_of(urlsplit(self.path).path) is Fault.HALF
            with path.open('rb') as f:
                f.seek(start)
                self.wfile.write(f.read(max(size // 2 - start, 0) if truncated else -1))
            self.close_connection = self.close_connection or truncated

    def answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        """An answer without a body."""
        self.send_head(status, {'Content-Length': '0', **(headers or {})})

    def send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """`HubServer.requests` is the log."""


class HubServer(ThreadingHTTPServer):
    """Serves the repositories below a folder, from `with` to its end.

    Attributes:
        root: Holds `ORG/NAME` (any revision) or `ORG/NAME@REVISION`, and plain files in `files`.
        requests: (method, path) of each request so far.
        faults: Part of a path ('' is in all) -> what goes wrong with requests for it; may change at any time.
    """

    daemon_threads = True

    def __init__(self, root: str | Path) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.root = Path(root)
        self.requests: list[tuple[str, str]] = []
        self.faults: dict[str, Fault] = {}

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def folder_of(self, repo: str, revision: str) -> Path | None:
        """Where a repository is on disk at a revision, None if it isn't."""
        folders = (self.root / name for name in (f'{repo}@{revision}', repo))
        return next((folder for folder in folders if folder.is_dir()), None)

    def fault_of(self, path: str) -> Fault | None:
        return next((fault for part, fault in self.faults.items() if part in path), None)

    def __enter__(self) -> 'HubServer':
        Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()
