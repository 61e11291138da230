"""A Hugging Face Hub on this machine. It serves huggingface_hub's downloads and uploads over real HTTP.

    with HubServer(folder) as hub:  # HF_ENDPOINT=hub.url
        hub.faults['model.safetensors'] = Fault.HALF

Large files are uploaded by the git-lfs protocol. Set HF_HUB_DISABLE_XET=1, so that huggingface_hub uses it.
"""

import enum
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_store import COMMIT, LFS_SUFFIXES, Store, commit_of, etag_of

REPO = r'(?P<repo>[^/]+/[^/]+)'
DATASET = r'(?P<repo>datasets/[^/]+/[^/]+)'
WRITTEN = r'(models/)?(?P<repo>(spaces/)?[^/]+/[^/]+)'  # a model or a Space
REVISION = r'(?P<revision>[^/]+)'
TOKEN = 'hf_of_this_machine'
LICENSES = ('apache-2.0', 'mit', 'other')  # the real Hub knows more


class Fault(enum.Enum):
    """What goes wrong with a request."""

    NOT_FOUND = 404  # as from a proxy, without the hub's error code; to have a file missing, delete the file
    FORBIDDEN = 403
    SERVER_ERROR = 500
    HALF = 'an upload or a download declares its full length and ends in the middle'
    CLOSED = 'the connection is closed without an answer'


class Handler(BaseHTTPRequestHandler):
    """Answers one request. `ROUTES` names the method that answers each endpoint."""

    ROUTES = tuple(
        (method, re.compile(pattern), endpoint)
        for method, pattern, endpoint in (
            ('GET', r'/files/(?P<name>.+)', 'plain_file'),
            ('GET', rf'/{REPO}/resolve/{REVISION}/(?P<name>.+)', 'resolve'),
            ('GET', rf'/{DATASET}/resolve/{REVISION}/(?P<name>.+)', 'resolve'),
            ('GET', rf'/api/{DATASET}(/revision/{REVISION})?', 'info'),
            ('GET', rf'/api/{DATASET}/tree/{REVISION}(/(?P<below>.+))?', 'tree'),
            ('POST', rf'/api/{DATASET}/paths-info/{REVISION}', 'paths_info'),
            ('GET', rf'/api/{WRITTEN}(/revision/{REVISION})?', 'info'),
            ('GET', rf'/api/{WRITTEN}/tree/{REVISION}', 'tree'),
            ('POST', r'/api/repos/create', 'create'),
            ('POST', rf'/api/{WRITTEN}/branch/{REVISION}', 'create_branch'),
            ('POST', r'/api/validate-yaml', 'validate_yaml'),
            ('POST', rf'/api/{WRITTEN}/preupload/{REVISION}', 'preupload'),
            ('POST', rf'/{REPO}\.git/info/lfs/objects/batch', 'lfs_batch'),
            ('PUT', r'/storage/(?P<sha256>[0-9a-f]{64})', 'lfs_put'),
            ('POST', rf'/api/{WRITTEN}/commit/{REVISION}', 'commit'),
        )
    )
    protocol_version = 'HTTP/1.1'
    server: 'HubServer'
    body: bytes

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        fault = self.server.fault_of(path)
        length = int(self.headers.get('Content-Length', 0))
        if fault is Fault.CLOSED or (fault is Fault.HALF and length):
            self.rfile.read(length // 2 if fault is Fault.HALF else 0)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        if fault in (Fault.NOT_FOUND, Fault.FORBIDDEN, Fault.SERVER_ERROR):
            self.answer(fault.value)
        else:
            self.route(path)

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self, path: str) -> None:
        """Calls the endpoint. Writing, and reading a private repository, need a token, as on the real Hub."""
        for method, pattern, endpoint in self.ROUTES:
            match = pattern.fullmatch(path) if method == self.command.replace('HEAD', 'GET') else None
            if match:
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                private = values.get('repo') in self.server.store.private
                # PUT needs no token: like a presigned address, it is open to whoever knows the sha256
                if not (private or self.command == 'POST') or self.headers.get('Authorization') == f'Bearer {TOKEN}':
                    getattr(self, endpoint)(**values)
                elif self.command == 'POST':
                    self.answer_json(dict(error='Invalid username or password.'), 401)
                else:
                    self.answer(401, {'X-Error-Code': 'RepoNotFound'})
                return
        self.answer(404)

    # Downloads

    def plain_file(self, name: str) -> None:
        """GET /files/NAME: a file of the folder `files`."""
        path = self.server.root / 'files' / name
        if path.is_file():
            self.send_file(path)
        else:
            self.answer(404)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        """HEAD and GET /ORG/NAME/resolve/REVISION/FILE: a file of a repository."""
        folder = self.server.store.folder_of(repo, revision)
        if folder is None:
            other_revisions = any(self.server.root.glob(f'{repo}@*'))
            self.answer(404, {'X-Error-Code': 'RevisionNotFound' if other_revisions else 'RepoNotFound'})
        elif not (folder / name).is_file():
            self.answer(404, {'X-Error-Code': 'EntryNotFound'})
        else:
            commit = revision if COMMIT.fullmatch(revision) else commit_of(folder)
            self.send_file(folder / name, {'X-Repo-Commit': commit})

    def send_file(self, path: Path, headers: dict[str, str] | None = None) -> None:
        """Sends a file, or the part of it that a Range header asks for."""
        size, asked = path.stat().st_size, re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        start = min(int(asked.group(1)), size) if asked else 0
        end = min(int(asked.group(2)) + 1, size) if asked and asked.group(2) else size
        headers = {'ETag': f'"{etag_of(path)}"', 'Content-Length': str(end - start), **(headers or {})}
        if asked:
            headers['Content-Range'] = f'bytes {start}-{end - 1}/{size}'
        self.send_head(206 if asked else 200, headers)
        if self.command == 'GET':
            self.server.sent += end - start
            truncated = self.server.fault_of(urlsplit(self.path).path) is Fault.HALF
            with path.open('rb') as f:
                f.seek(start)
                self.wfile.write(f.read(max(size // 2 - start, 0) if truncated else end - start))
            self.close_connection = self.close_connection or truncated

    # Contents of a repository

    def existing(self, repo: str, revision: str) -> Path | None:
        """Returns the folder of a branch. If there is none, answers 404 and returns None."""
        folder = self.server.store.branch(repo, revision)
        if folder is None:
            known = (self.server.root / repo).is_dir()
            self.answer(404, {'X-Error-Code': 'RevisionNotFound' if known else 'RepoNotFound'})
        return folder

    def info(self, repo: str, revision: str = 'main') -> None:
        """GET /api/models/ORG/NAME[/revision/REVISION]: the commit, and the names of all files."""
        if folder := self.existing(repo, revision):
            siblings = [
                dict(rfilename=entry['path'])
                for entry in self.server.store.tree(folder, '', recursive=True)
                if entry['type'] == 'file'
            ]
            self.answer_json(
                dict(id=repo, sha=commit_of(folder), private=repo in self.server.store.private, siblings=siblings)
            )

    def tree(self, repo: str, revision: str, below: str = '') -> None:
        """GET /api/models/ORG/NAME/tree/REVISION[/FOLDER]: contents of a folder; ?recursive=True adds subfolders."""
        if folder := self.existing(repo, revision):
            recursive = parse_qs(urlsplit(self.path).query).get('recursive', [''])[0].lower() == 'true'
            self.answer_json(self.server.store.tree(folder, below, recursive))

    def paths_info(self, repo: str, revision: str) -> None:
        """POST /api/datasets/ORG/NAME/paths-info/REVISION: entries of the named files and folders that exist."""
        if folder := self.existing(repo, revision):
            entries = self.server.store.tree(folder, '', recursive=True)
            asked = parse_qs(self.body.decode()).get('paths', [])
            self.answer_json([entry for entry in entries if entry['path'] in asked])

    # Uploads

    def create(self) -> None:
        """POST /api/repos/create: a new repository, or 409 if it exists."""
        asked = json.loads(self.body)
        space = 'spaces/' if asked.get('type') == 'space' else ''
        repo = f'{space}{asked["organization"]}/{asked["name"]}'
        exists = (self.server.root / repo).is_dir()
        if not exists:
            self.server.store.create(repo, asked.get('visibility') == 'private')
        self.answer_json(dict(url=f'{self.server.url}/{repo}'), 409 if exists else 200)

    def create_branch(self, repo: str, revision: str) -> None:
        """POST /api/models/ORG/NAME/branch/BRANCH: a new branch, which begins as a copy of main."""
        if self.existing(repo, 'main'):
            self.server.store.create_branch(repo, revision)
            self.answer_json({})

    def validate_yaml(self) -> None:
        """POST /api/validate-yaml: 400 if the card names a licence that is not in LICENSES."""
        metadata = yaml.safe_load(json.loads(self.body)['content'].split('---')[1])
        wrong = metadata.get('license', 'mit') not in LICENSES
        errors = [dict(message=f'"license" must be one of {LICENSES}')] if wrong else []
        self.answer_json(dict(errors=errors, warnings=[]), 400 if wrong else 200)

    def preupload(self, repo: str, revision: str) -> None:
        """POST /api/models/ORG/NAME/preupload/REVISION: whether each file is large, and its hash if it exists."""
        folder = self.existing(repo, revision)
        if folder:
            there = {entry['path']: entry for entry in self.server.store.tree(folder, '', recursive=True)}
            oids = {path: entry.get('lfs', entry)['oid'] for path, entry in there.items()}
            files = [
                dict(
                    path=file['path'],
                    shouldIgnore=False,
                    uploadMode='lfs' if file['path'].endswith(LFS_SUFFIXES) else 'regular',
                    oid=oids.get(file['path']),
                )
                for file in json.loads(self.body)['files']
            ]
            self.answer_json(dict(files=files))

    def lfs_batch(self, repo: str) -> None:
        """POST /ORG/NAME.git/info/lfs/objects/batch: address for each large file that main does not have."""
        folder = self.server.store.branch(repo, 'main')
        tree = self.server.store.tree(folder, '', recursive=True) if folder else []
        there = {entry['lfs']['oid'] for entry in tree if 'lfs' in entry}
        objects = [
            dict(file, actions=dict(upload=dict(href=f'{self.server.url}/storage/{file["oid"]}')))
            if file['oid'] not in there
            else file
            for file in json.loads(self.body)['objects']
        ]
        self.answer_json(dict(transfer='basic', objects=objects))

    def lfs_put(self, sha256: str) -> None:
        """PUT /storage/SHA256: stores a large file, or answers 400 if the hash differs."""
        if hashlib.sha256(self.body).hexdigest() != sha256:
            self.answer_json(dict(error='The content is not what its sha256 says.'), 400)
        else:
            self.server.store.objects[sha256] = self.body
            self.answer(200)

    def commit(self, repo: str, revision: str) -> None:
        """POST /api/models/ORG/NAME/commit/BRANCH: a line with the header, then a line for each file."""
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if not (folder := self.existing(repo, revision)):
            return
        if header['value'].get('parentCommit', commit := commit_of(folder)) != commit:
            self.answer_json(dict(error='A commit has happened since. Please refresh and try again.'), 412)
            return
        try:
            commit = self.server.store.commit(folder, operations)
        except KeyError as e:
            self.answer_json(dict(error=f'{e} was not uploaded.'), 400)
        else:
            url = f'{self.server.url}/{repo}/commit/{commit}'
            self.answer_json(dict(success=True, commitOid=commit, commitUrl=url))

    # Answers

    def answer_json(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_head(status, {'Content-Type': 'application/json', 'Content-Length': str(len(text))})
        if self.command != 'HEAD':
            self.wfile.write(text)

    def answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        """Sends an answer without a body."""
        self.send_head(status, {'Content-Length': '0', **(headers or {})})

    def send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Prints nothing: `HubServer.requests` is the log."""


class HubServer(ThreadingHTTPServer):
    """Serves the repositories below a folder while its `with` block runs.

    Attributes:
        root: Folder with `ORG/NAME` (any revision) or `ORG/NAME@REVISION`, and plain files in `files`.
        store: Repositories, branches and commits in that folder.
        requests: (method, path) of each request so far.
        sent: Number of bytes of files sent so far.
        faults: Part of a path -> fault of all requests whose path has it ('' matches all). It may change at any time.
    """

    daemon_threads = True

    def __init__(self, root: str | Path) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.root = Path(root)
        self.store = Store(self.root)
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        self.faults: dict[str, Fault] = {}

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def fault_of(self, path: str) -> Fault | None:
        return next((fault for part, fault in self.faults.items() if part in path), None)

    def __enter__(self) -> 'HubServer':
        Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()
