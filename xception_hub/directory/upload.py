"""Publishes a model directory on the Hugging Face Hub, and a demo page for it as a Space, each in one commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import timm
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

import xception_hub  # noqa: F401  registers the model

from ..errors import PublishError, WeightsError
from ..weights.pretrained import OFFLINE_REMEDY
from .card import is_xception, render
from .space import space_files
from .write import CONFIG_FILE, IMAGES_FILE, PARITY_FILE, WEIGHTS_FILE, read_json, written_label_names

CARD_FILE = 'README.md'
OPTIONAL = (PARITY_FILE, IMAGES_FILE)  # published if the directory has them, else removed
MESSAGE = 'Publish xception_paper'
MAIN = 'main'  # the Hub's default branch
TOKEN_REMEDY = (
    'Log in with `hf auth login`, or set HF_TOKEN. The token needs the right to write there; create one on '
    'https://huggingface.co/settings/tokens.'
)
AGAIN = 'The Hub stores a commit completely or not at all. Run the command again; it sends the missing files.'
# HTTP status of the Hub's answer -> remedy, where it is not enough to run the command again
REMEDIES = {
    400: 'For the licence, pass --license with an identifier of https://huggingface.co/docs/hub/repositories-licenses.',
    401: TOKEN_REMEDY,
    403: TOKEN_REMEDY,
    404: 'Check the name; if the repository is private, use a token that opens it.',
    412: 'Someone else made a commit meanwhile. Run the command again: it compares with the new commit.',
    429: 'The Hub received too many requests. Wait some minutes, then run the command again.',
}


class Remote(NamedTuple):
    """State of a repository on the Hub."""

    exists: bool = False  # also if it is private and the token cannot open it
    private: bool = False
    head: str | None = None  # hash of the last commit of the branch; None if there is no such branch
    files: frozenset[str] = frozenset()  # names, of the branch
    problem: PublishError | None = None  # why the request failed; all else is then not known


@dataclass(frozen=True)
class Upload:
    """Everything that publishing a directory, or a page for it, would send and remove.

    Attributes:
        repo_id: 'org/name'.
        branch: Branch that the commit goes to.
        contents: Name in the repository -> content as bytes, or path of the file that has it.
        remote: State of the repository on the Hub.
        left_out: Names of files and folders in the directory that are not published.
        kind: 'model' or 'space'.
    """

    repo_id: str
    branch: str
    contents: dict[str, Path | bytes]
    remote: Remote
    left_out: tuple[str, ...] = ()
    kind: str = 'model'

    @property
    def url(self) -> str:
        """Address of the repository's page."""
        return f'{HfApi().endpoint}/{"spaces/" * (self.kind == "space")}{self.repo_id}'

    @property
    def removed(self) -> list[str]:
        """Names of files to remove: those of `OPTIONAL` in the repository that the directory does not replace."""
        return [name for name in OPTIONAL if name in self.remote.files and name not in self.contents]

    @property
    def model_name(self) -> str:
        """Name to pass to `timm.create_model`."""
        return f'hf-hub:{_pinned(self.repo_id, self.branch)}'


def publish(
    directory: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    message: str = MESSAGE,
) -> str | None:
    """Checks a directory and sends what the Hub does not have, in one commit. Nothing is written to the directory.

    The arguments are those of `xception-hub publish`. A branch that does not exist is created from main.

    Returns:
        The address of the commit's page; None if the repository has all of this, so that no commit was made.

    Raises:
        DirectoryError: A file of the directory is missing or cannot be read.
        PublishError: Any other failure. Nothing was published.
    """
    return send(make_upload(directory, repo_id, revision, license), private, message)


def make_upload(directory: Path, repo_id: str, revision: str | None = None, license: str | None = None) -> Upload:
    """Checks a directory and asks the Hub what it has. `publish` describes the arguments."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise PublishError(f'repo id {repo_id!r}: {e} Pass org/name.') from e
    if '/' not in repo_id:
        raise PublishError(f'repo id {repo_id!r} has no owner. Pass org/name, or your user name instead of org.')
    _check_directory(directory)
    branch = revision or MAIN
    contents: dict[str, Path | bytes] = {
        name: directory / name for name in (WEIGHTS_FILE, CONFIG_FILE, *OPTIONAL) if (directory / name).is_file()
    }
    contents[CARD_FILE] = render(directory, _pinned(repo_id, branch), license).encode()
    names = sorted(path.name + ('/' if path.is_dir() else '') for path in directory.iterdir())
    left_out = tuple(name for name in names if name not in contents)
    return Upload(repo_id, branch, contents, _ask(repo_id, branch, 'model'), left_out)


def make_space(upload: Upload) -> Upload:
    """The upload of a page for a published model: a Space of the same name, see `xception_hub.inference.demo`."""
    files = space_files(upload.repo_id, upload.model_name)
    return Upload(upload.repo_id, MAIN, {**files}, _ask(upload.repo_id, MAIN, 'space'), kind='space')


def send(upload: Upload, private: bool = False, message: str = MESSAGE) -> str | None:
    """Sends the commit. The Hub's client leaves out unchanged files. `publish` describes arguments and result."""
    remote = upload.remote
    if remote.problem:
        raise remote.problem
    if private and remote.exists and not remote.private:
        raise PublishError(
            f'{upload.repo_id} exists and is public, which --private does not change. Make it private on '
            f'{upload.url}/settings, or leave --private out.'
        )
    if get_token() is None:
        raise PublishError(f'There is no token for writing to {upload.repo_id}. {TOKEN_REMEDY}')
    added = [CommitOperationAdd(name, content) for name, content in upload.contents.items()]
    api, target = HfApi(library_name='xception_hub'), dict(repo_id=upload.repo_id, repo_type=upload.kind)
    with _explained(upload.repo_id):
        if not remote.exists:
            sdk = dict(space_sdk='gradio') if upload.kind == 'space' else {}
            api.create_repo(**target, private=private or None, exist_ok=True, **sdk)
        if remote.head is None and upload.branch != MAIN:
            api.create_branch(**target, branch=upload.branch, exist_ok=True)
        commit = api.create_commit(
            **target,
            operations=[*added, *map(CommitOperationDelete, upload.removed)],
            commit_message=message,
            revision=upload.branch,
            parent_commit=remote.head,
        )
    return None if commit.oid == remote.head else commit.commit_url


def _pinned(repo_id: str, branch: str) -> str:
    return repo_id if branch == MAIN else f'{repo_id}@{branch}'


def _check_directory(directory: Path) -> None:
    """Raises an error if the model does not load, or if parity.json records a failed proof."""
    if not (directory / WEIGHTS_FILE).is_file():  # timm would also load a pickle
        raise PublishError(f'{directory} has no {WEIGHTS_FILE}. Name a directory that xception-hub convert wrote.')
    config, file = read_json(directory / CONFIG_FILE), directory / CONFIG_FILE
    if not is_xception(config):
        raise PublishError(
            f'{file}: architecture is {config.get("architecture")!r}, not xception_paper or a variant of it. Publish '
            'other networks with their own library.'
        )
    names, classes = written_label_names(config), config.get('num_classes')
    if names and (not isinstance(names, list) or len(names) != classes):
        raise PublishError(
            f'{file}: label_names must be a list of {classes} names, one for each class, but is {names!r:.200}.'
        )
    if 'id2label' in config and config['id2label'] != {str(output): name for output, name in enumerate(names or [])}:
        raise PublishError(
            f'{file}: id2label, for transformers, and label_names differ. Write the same names into both, and into '
            'label2id.'
        )
    if (directory / PARITY_FILE).is_file():
        passed = read_json(directory / PARITY_FILE).get('passed')
        if passed is not True:
            raise PublishError(
                f'{directory / PARITY_FILE} contains passed: {passed}. Run `xception-hub prove` to find the difference.'
            )
    try:
        timm.create_model(f'local-dir:{directory}', pretrained=True)
    except Exception as e:  # config.json may ask for anything
        # without the remedy to get other weights, because this file itself is wrong
        reason = str(e).removesuffix(OFFLINE_REMEDY) if isinstance(e, WeightsError) else _described(e)
        raise PublishError(f'{directory} does not load: {" ".join(reason.split())} Write it again.') from e


def _ask(repo_id: str, branch: str, kind: str) -> Remote:
    """Asks for the state of a repository. An error is returned in `problem`: a dry run goes on without an answer."""
    api = HfApi(library_name='xception_hub')
    try:
        with _explained(repo_id):
            try:
                info = api.repo_info(repo_id, repo_type=kind, revision=branch)
            except RepositoryNotFoundError:
                return Remote()
            except RevisionNotFoundError:
                return Remote(exists=True, private=bool(api.repo_info(repo_id, repo_type=kind).private))
            files = frozenset(file.rfilename for file in info.siblings or ())
            return Remote(True, bool(info.private), info.sha, files)
    except PublishError as e:
        return Remote(problem=e)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turns any failure of the Hub into a PublishError of one line with a remedy, chosen by the Hub's status."""
    try:
        yield
    except Exception as e:  # includes errors of the client's HTTP library, which changes with its version
        answers = [error for error in (e, e.__cause__) if isinstance(error, HfHubHTTPError)]
        remedy = REMEDIES.get(answers[0].response.status_code, AGAIN) if answers else ''
        network = f'Check the network, and HF_ENDPOINT, which is {HfApi().endpoint}. {AGAIN}'
        raise PublishError(f'{repo_id}: {_described(e)}. {remedy or network}') from e


def _described(error: BaseException) -> str:
    """Text of an error in one line. The cause is added if the error itself does not name it."""
    if isinstance(error, HfHubHTTPError):
        text = f'the Hub answers {error.response.status_code}, {error.server_message or error.response.reason_phrase}'
    else:
        text = f'{type(error).__name__}: {error}'
        if error.__cause__ and str(error.__cause__) not in text:
            text = f'{text} (because of {_described(error.__cause__)})'
    return ' '.join(text.split()).rstrip('.')


def describe(upload: Upload) -> str:
    """Describes an upload, one line for each file with its size."""
    remote = upload.remote
    if remote.problem:
        state = f'the Hub could not be asked. {remote.problem}'
    elif not remote.exists:
        state = 'does not exist, or is private and not open to the token'
    else:
        state = 'private' if remote.private else 'public'
    lines = [f'{upload.url}, branch {upload.branch}: {state}']
    for name, content in upload.contents.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        lines.append(f'  {name:20}{size / 1e6:10.1f} MB' if size >= 1e6 else f'  {name:20}{size / 1e3:10.1f} kB')
    lines += [f'  {name:20}{"":>10}  removed' for name in upload.removed]
    if upload.left_out:
        lines.append(f'Not published: {", ".join(upload.left_out)}')
    return '\n'.join(lines)
