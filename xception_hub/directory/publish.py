"""A model directory on the Hugging Face Hub, in one commit: checked, compared with what is there, and sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

import xception_hub  # noqa: F401  registers the model

from ..errors import PublishError, WeightsError
from ..weights.sources import OFFLINE_REMEDY
from .card import is_xception, render
from .write import CONFIG_FILE, PARITY_FILE, WEIGHTS_FILE, read_json

CARD_FILE = 'README.md'
MESSAGE = 'Publish xception_paper'
MAIN = 'main'  # the Hub's default branch
TOKEN_REMEDY = (
    'Log in with `hf auth login`, or set HF_TOKEN, with a token from https://huggingface.co/settings/tokens that may '
    'write there.'
)
AGAIN = 'A commit is made whole or not at all: run the command again, it sends what is missing.'
# Status of the Hub's answer -> what to do, where running the command again is not enough
REMEDIES = {
    400: 'For the licence, pass --license with an identifier of https://huggingface.co/docs/hub/repositories-licenses.',
    401: TOKEN_REMEDY,
    403: TOKEN_REMEDY,
    404: 'Check the name; if the repository is private, use a token that opens it.',
    412: 'Someone else made a commit meanwhile: run the command again, it compares with that.',
    429: 'The Hub asks for patience: run the command again in some minutes.',
}


@dataclass(frozen=True)
class Remote:
    """What the Hub has.

    Attributes:
        exists: Whether it has the repository, as far as the token shows.
        private: Whether the repository is private.
        head: The commit that the branch is at; None if there is no such branch.
        files: Name -> huggingface_hub's description of each file outside of folders.
        problem: Why the Hub could not be asked; then the rest says nothing.
    """

    exists: bool = False
    private: bool = False
    head: str | None = None
    files: dict[str, Any] = field(default_factory=dict)
    problem: PublishError | None = None


@dataclass(frozen=True)
class Upload:
    """What publishing a directory would do.

    Attributes:
        repo_id: 'org/name'.
        branch: Branch of the repository.
        card: Text of the model card.
        contents: Name in the repository -> content, or the file with it.
        left_out: Names in the directory that are not published.
        remote: What the Hub has.
    """

    repo_id: str
    branch: str
    card: str
    contents: dict[str, Path | bytes]
    left_out: list[str]
    remote: Remote

    @property
    def url(self) -> str:
        """Address of the repository's page."""
        return f'{HfApi().endpoint}/{self.repo_id}'

    @property
    def removed(self) -> list[str]:
        """Names of the files that go: the proofs of weights that are there no more."""
        return [PARITY_FILE] if PARITY_FILE in self.remote.files and PARITY_FILE not in self.contents else []

    @property
    def model_name(self) -> str:
        """What `timm.create_model` takes."""
        return f'hf-hub:{_pinned(self.repo_id, self.branch)}'

    def status(self, name: str) -> str:
        """'new', 'changed', 'unchanged' or 'removed'; 'unknown' if the Hub could not be asked."""
        if self.remote.problem:
            return 'unknown'
        if name in self.removed:
            return 'removed'
        if name not in self.remote.files:
            return 'new'
        there, content = self.remote.files[name], self.contents[name]
        if there.lfs:  # the Hub knows large files by their sha256, others by git's hash
            same = there.lfs.sha256 == CommitOperationAdd(name, content).upload_info.sha256.hex()
        else:
            same = there.blob_id == git_hash(content if isinstance(content, bytes) else content.read_bytes())
        return 'unchanged' if same else 'changed'


@dataclass(frozen=True)
class Published:
    """What was done.

    Attributes:
        upload: What was to be done.
        commit_url: Address of the commit's page; None if the repository held everything already.
    """

    upload: Upload
    commit_url: str | None


def publish(
    directory: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    message: str = MESSAGE,
) -> Published:
    """Checks a directory, and commits what the Hub does not have, in one commit.

    Args:
        directory: Directory with config.json and model.safetensors; nothing is written to it.
        repo_id: 'org/name'; the repository is created if it does not exist.
        private: Whether a repository that is created is private.
        revision: Branch, 'main' if None; it is created from main if it does not exist.
        license: The Hub's identifier of the weights' licence, for the card.
        message: Message of the commit.

    Raises:
        CardError: A file of the directory is missing or cannot be read.
        PublishError: Any other reason for which nothing was published.
    """
    return send(make_upload(directory, repo_id, revision, license), private, message)


def make_upload(directory: Path, repo_id: str, revision: str | None = None, license: str | None = None) -> Upload:
    """Checks a directory and asks the Hub what it has; see `publish`."""
    _check_repo_id(repo_id)
    _check_directory(directory)
    branch = revision or MAIN
    card = render(directory, _pinned(repo_id, branch), license)
    contents: dict[str, Path | bytes] = {
        WEIGHTS_FILE: directory / WEIGHTS_FILE,
        CONFIG_FILE: directory / CONFIG_FILE,
        CARD_FILE: card.encode(),
    }
    if (directory / PARITY_FILE).is_file():
        contents[PARITY_FILE] = directory / PARITY_FILE
    names = sorted(path.name + ('/' if path.is_dir() else '') for path in directory.iterdir())
    left_out = [name for name in names if name not in (*contents, CARD_FILE)]
    return Upload(repo_id, branch, card, contents, left_out, _ask(repo_id, branch))


def send(upload: Upload, private: bool = False, message: str = MESSAGE) -> Published:
    """Makes the commit. The Hub's client leaves out of it what has not changed; see `publish`."""
    remote = upload.remote
    if remote.problem:
        raise remote.problem
    if private and remote.exists and not remote.private:
        raise PublishError(
            f'{upload.repo_id} exists and is public, which --private does not change. Make it private on '
            f'{upload.url}/settings, or leave --private out.'
        )
    operations = [CommitOperationAdd(name, content) for name, content in upload.contents.items()]
    with _explained(upload.repo_id):
        if get_token() is None:
            if {upload.status(name) for name in (*upload.contents, *upload.removed)} == {'unchanged'}:
                return Published(upload, None)
            raise PublishError(f'There is no token to write to {upload.repo_id} with. {TOKEN_REMEDY}')
        api = HfApi(library_name='xception_hub')
        if not remote.exists:
            api.create_repo(upload.repo_id, private=private or None, exist_ok=True)
        if remote.head is None and upload.branch != MAIN:
            api.create_branch(upload.repo_id, branch=upload.branch, exist_ok=True)
        commit = api.create_commit(
            upload.repo_id,
            [*operations, *map(CommitOperationDelete, upload.removed)],
            commit_message=message,
            revision=upload.branch,
            parent_commit=remote.head,
        )
    return Published(upload, None if commit.oid == remote.head else commit.commit_url)


def _pinned(repo_id: str, branch: str) -> str:
    return repo_id if branch == MAIN else f'{repo_id}@{branch}'


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise PublishError(f'repo id {repo_id!r}: {e} Pass org/name.') from e
    if '/' not in repo_id:
        raise PublishError(f'repo id {repo_id!r} has no owner. Pass org/name, or your user name instead of org.')


def _check_directory(directory: Path) -> None:
    """Makes sure that what is published loads, and that nothing in it is known to be wrong."""
    if not (directory / WEIGHTS_FILE).is_file():  # timm would be content with a pickle
        raise PublishError(f'{directory} has no {WEIGHTS_FILE}. Name a directory that xception-hub convert wrote.')
    config = read_json(directory / CONFIG_FILE)
    if not is_xception(config):
        raise PublishError(
            f"{directory / CONFIG_FILE}: its architecture is {config.get('architecture')!r}, not 'xception_paper' or a "
            f'variant of it; another network is published with its own library.'
        )
    names, classes = config.get('label_names'), config.get('num_classes')
    if names and (not isinstance(names, list) or len(names) != classes):
        raise PublishError(
            f'{directory / CONFIG_FILE}: label_names has to be a list of {classes} names, one for each '
            f'class, but has {len(names)}.'
        )
    if (directory / PARITY_FILE).is_file():
        passed = read_json(directory / PARITY_FILE).get('passed')
        if passed is not True:
            raise PublishError(
                f'{directory / PARITY_FILE} says passed: {passed}, so the network is not shown to be that of its '
                f'source. `xception-hub prove` says where they differ.'
            )
    try:
        timm.create_model(f'local-dir:{directory}', pretrained=True)
    except WeightsError as e:
        # how to get other weights is of no use here
        reason = ' '.join(str(e).removesuffix(OFFLINE_REMEDY).split())
        raise PublishError(f'{directory} does not load. {reason} Write it anew.') from e
    except Exception as e:  # config.json may ask for anything
        raise PublishError(
            f'{directory} does not load: {CONFIG_FILE} describes no model that timm can build '
            f'({_described(e)}). Write it anew.'
        ) from e


def _ask(repo_id: str, branch: str) -> Remote:
    """What the Hub has; a problem is kept for whoever can't do without the answer."""
    api = HfApi(library_name='xception_hub')
    try:
        with _explained(repo_id):
            try:
                info = api.model_info(repo_id)
            except RepositoryNotFoundError:
                return Remote()
            try:
                head = api.model_info(repo_id, revision=branch).sha
            except RevisionNotFoundError:
                return Remote(exists=True, private=bool(info.private))
            files = {entry.path: entry for entry in api.list_repo_tree(repo_id, revision=head)}
            return Remote(True, bool(info.private), head, files)
    except PublishError as e:
        return Remote(problem=e)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turns what goes wrong with the Hub into one line with a remedy."""
    try:
        yield
    except PublishError:
        raise
    except Exception as e:  # the client also raises what its HTTP library does, which is not the same in each version
        raise PublishError(f'{repo_id}: {_described(e)}. {_remedy(e)}') from e


def _remedy(error: BaseException) -> str:
    """What to do about an error, by the status of the Hub's answer if there was one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if cause is None:
        return f'Check the network, and HF_ENDPOINT, which is {HfApi().endpoint}. {AGAIN}'
    return REMEDIES.get(cause.response.status_code, AGAIN)


def _described(error: BaseException) -> str:
    """An error in a line, with the one that caused it if the Hub's client only says what it could not do."""
    if isinstance(error, HfHubHTTPError):
        text = f'the Hub answers {error.response.status_code}, {error.server_message or error.response.reason_phrase}'
    else:
        text = f'{type(error).__name__}: {error}'
        if error.__cause__ and str(error.__cause__) not in text:
            text = f'{text} (because of {_described(error.__cause__)})'
    return ' '.join(text.split()).rstrip('.')


def describe(upload: Upload, compared: bool = False) -> str:
    """An upload in words.

    Args:
        upload: What publishing would do.
        compared: Whether to compare each file with the Hub's, which reads all of them.
    """
    remote = upload.remote
    if remote.problem:
        state = f'the Hub could not be asked. {remote.problem}'
    elif not remote.exists:
        state = 'does not exist, or is private and not open to the token'
    else:
        state = 'private' if remote.private else 'public'
    at = f', at {remote.head[:8]}' if remote.head else ''
    lines = [f'{upload.url}, branch {upload.branch}: {state}{at}']
    for name, content in upload.contents.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        lines.append(f'  {name:20}{_human(size):>10}' + (f'  {upload.status(name)}' if compared else ''))
    lines += [f'  {name:20}{"":>10}  removed' for name in upload.removed]
    if upload.left_out:
        lines.append(f'Not published: {", ".join(upload.left_out)}')
    if others := sorted(set(remote.files) - {*upload.contents, *upload.removed}):
        lines.append(f'In the repository, and left as it is: {", ".join(others)}')
    return '\n'.join(lines)


def _human(size: int) -> str:
    return f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{size / 1e3:.1f} kB'
