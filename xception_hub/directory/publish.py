"""A model directory on the Hugging Face Hub, in one commit: checked, compared with what is there, and sent."""

import hashlib
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

__all__ = ['Published', 'Upload', 'make_upload', 'publish', 'send']

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
class File:
    """A file of the repository, as it is to be.

    Attributes:
        name: In the repository.
        content: Itself, or where it is; None to remove what the Hub has.
        status: Beside what the Hub has: 'new', 'changed', 'removed', 'unchanged'; 'unknown' if it could not be asked.
    """

    name: str
    content: Path | bytes | None
    status: str

    @property
    def size(self) -> int:
        """In bytes."""
        return 0 if self.content is None else _size(self.content)

    @property
    def operation(self) -> CommitOperationAdd | CommitOperationDelete:
        """Its part in a commit."""
        return CommitOperationDelete(self.name) if self.content is None else CommitOperationAdd(self.name, self.content)


@dataclass(frozen=True)
class Remote:
    """What the Hub has.

    Attributes:
        exists: Whether it has the repository, as far as the token shows.
        private: Whether that is private.
        head: The commit that the branch is at; None if there is no such branch.
        files: Name -> huggingface_hub's description of the file, without those in folders.
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
        branch: Of the repository.
        card: The text of the model card.
        files: All that the repository is to have of the directory, the card among them.
        left_out: Names in the directory that are not published.
        remote: What they were compared with.
    """

    repo_id: str
    branch: str
    card: str
    files: list[File]
    left_out: list[str]
    remote: Remote

    @property
    def url(self) -> str:
        """Of the repository's page."""
        return f'{HfApi().endpoint}/{self.repo_id}'

    @property
    def to_send(self) -> list[File]:
        return [file for file in self.files if file.status != 'unchanged']

    @property
    def model_name(self) -> str:
        """What `timm.create_model` takes."""
        return f'hf-hub:{_pinned(self.repo_id, self.branch)}'


@dataclass(frozen=True)
class Published:
    """What was done.

    Attributes:
        plan: What was to be done.
        commit_url: The commit's page; None if the repository held everything already.
    """

    plan: Upload
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
    """Checks a directory, compares it with the Hub, and commits what differs.

    Args:
        directory: With config.json and model.safetensors; nothing is written to it.
        repo_id: 'org/name'; the repository is created if it doesn't exist.
        private: Whether a repository that is created is private.
        revision: The branch, 'main' if None; created from there if it doesn't exist.
        license: The Hub's identifier of the weights' licence, for the card.
        message: Of the commit.

    Raises:
        CardError: A file of the directory is missing or can't be read.
        PublishError: Any other reason for which nothing was published.
    """
    return send(make_upload(directory, repo_id, revision, license), private, message)


def make_upload(directory: Path, repo_id: str, revision: str | None = None, license: str | None = None) -> Upload:
    """Checks a directory and compares it with the Hub, which is only asked; see `publish`."""
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
    remote = _ask(repo_id, branch)
    files = [File(name, content, _status(name, content, remote)) for name, content in contents.items()]
    if PARITY_FILE in remote.files and PARITY_FILE not in contents:  # the proofs of weights that are there no more
        files.append(File(PARITY_FILE, None, 'removed'))
    names = sorted(path.name + ('/' if path.is_dir() else '') for path in directory.iterdir())
    return Upload(repo_id, branch, card, files, [name for name in names if name not in (*contents, CARD_FILE)], remote)


def send(plan: Upload, private: bool = False, message: str = MESSAGE) -> Published:
    """Carries a plan out, in one commit; see `publish`."""
    remote = plan.remote
    if remote.problem:
        raise remote.problem
    if private and remote.exists and not remote.private:
        raise PublishError(
            f'{plan.repo_id} exists and is public, which --private does not change. Make it private on '
            f'{plan.url}/settings, or leave --private out.'
        )
    if not plan.to_send:
        return Published(plan, None)
    with _explained(plan.repo_id):
        if get_token() is None:
            raise PublishError(f'There is no token to write to {plan.repo_id} with. {TOKEN_REMEDY}')
        api = HfApi(library_name='xception_hub')
        if not remote.exists:
            api.create_repo(plan.repo_id, private=private or None, exist_ok=True)
        if remote.head is None and plan.branch != MAIN:
            api.create_branch(plan.repo_id, branch=plan.branch, exist_ok=True)
        commit = api.create_commit(
            plan.repo_id,
            [file.operation for file in plan.to_send],
            commit_message=message,
            revision=plan.branch,
            parent_commit=remote.head,
        )
    return Published(plan, commit.commit_url)


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
        raise PublishError(f'{directory} has no {WEIGHTS_FILE}. Name a directory that conversion.convert wrote.')
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
                f'source. `python -m conversion.verify` says where they differ.'
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


def _status(name: str, content: Path | bytes, remote: Remote) -> str:
    if remote.problem:
        return 'unknown'
    if name not in remote.files:
        return 'new'
    there = remote.files[name]
    if there.size != _size(content):
        return 'changed'
    if there.lfs:  # the Hub knows large files by their sha256, others by git's hash
        return 'unchanged' if there.lfs.sha256 == hashlib.sha256(_read(content)).hexdigest() else 'changed'
    return 'unchanged' if there.blob_id == git_hash(_read(content)) else 'changed'


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _read(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


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
    """By the status of the Hub's answer, if one is behind the error."""
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


def describe(plan: Upload) -> str:
    """A plan for people."""
    remote = plan.remote
    if remote.problem:
        state = f'the Hub could not be asked. {remote.problem}'
    elif not remote.exists:
        state = 'does not exist, or is private and not open to the token'
    else:
        state = 'private' if remote.private else 'public'
    at = f', at {remote.head[:8]}' if remote.head else ''
    lines = [f'{plan.url}, branch {plan.branch}: {state}{at}']
    lines += [f'  {file.name:20}{_human(file.size):>10}  {file.status}' for file in plan.files]
    if plan.left_out:
        lines.append(f'Not published: {", ".join(plan.left_out)}')
    if others := sorted(set(remote.files) - {file.name for file in plan.files}):
        lines.append(f'In the repository, and left as it is: {", ".join(others)}')
    return '\n'.join(lines)


def _human(size: int) -> str:
    return f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{size / 1e3:.1f} kB'
