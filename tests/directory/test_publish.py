"""`xception-hub publish`, over HTTP to a hub on this machine and back, by everything that a card names."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml
from commands import call
from conftest import ROOT
from forked import run_code
from hub_server import TOKEN, Fault, HubServer
from PIL import Image
from port_a_keras_model import CLASS_NAMES, Checkpoint
from random_model import random_model
from torch import nn

from xception_hub.directory.card import render
from xception_hub.directory.publish import app
from xception_hub.directory.upload import make_upload, publish, send
from xception_hub.directory.write import write_model
from xception_hub.errors import PublishError, XceptionHubError

# huggingface_hub's own use of its HTTP library, where Xet is disabled
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

REPO = 'org/kitchenware'
FILES = {'model.safetensors', 'config.json', 'README.md', 'parity.json'}
# What the blocks of the card go on with.
USE = """
with torch.inference_mode():
    torch.save(model(torch.load('images.pt')), 'logits.pt')
"""


def python(code: str, cwd: Path) -> tuple[int, str]:
    """Status and output of a fresh process, with a cold cache."""
    environment = dict(os.environ, HF_HOME=str(cwd / 'hf'), PYTHONPATH=str(ROOT))
    command = [sys.executable, '-W', 'error::UserWarning', '-c', code]
    result = subprocess.run(command, cwd=cwd, text=True, capture_output=True, env=environment)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope='module')
def published(hub: HubServer, converted: Path) -> str:
    """What the command prints when it publishes the converted directory."""
    hub.requests.clear()
    shutil.rmtree(hub.root / REPO, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HF_TOKEN', TOKEN)
        printed = command(converted, REPO, '--license', 'other')
    assert [method for method, _ in hub.requests].count('PUT') == 1  # of large files, the weights
    return printed


@pytest.fixture(scope='module')
def model(converted: Path) -> nn.Module:
    """The directory's own."""
    return timm.create_model(f'local-dir:{converted}', pretrained=True).eval()


@pytest.fixture(scope='module')
def photo(checkpoint: Checkpoint) -> Path:
    """One with a label."""
    return next(path for path in checkpoint.photos if path.stem in checkpoint.labels)


@pytest.fixture
def reader(tmp_path: Path, photo: Path, model: nn.Module) -> Path:
    """The folder of someone who has nothing but a photo, and the photo as the directory says it is to be prepared."""
    folder = tmp_path / 'reader'
    folder.mkdir()
    shutil.copy(photo, folder / 'photo.jpg')
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    torch.save(transform(Image.open(photo).convert('RGB')).unsqueeze(0), folder / 'images.pt')
    return folder


@pytest.fixture(scope='module')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a small network."""
    folder = tmp_path_factory.mktemp('small')
    network = random_model(num_classes=3, width_multiplier=0.1875)
    write_model(folder, network, dict(label_names=['cup', 'fork', 'glass']), dict(width_multiplier=0.1875))
    (folder / 'parity.json').write_text('{"passed": true}')
    return folder


@pytest.fixture
def directory(small: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(small, tmp_path / 'model')


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HF_TOKEN', TOKEN)


@pytest.fixture(autouse=True)
def clean(hub: HubServer) -> Iterator[None]:
    """The hub's log is empty, and nothing is wrong with it."""
    hub.requests.clear()
    yield
    hub.faults.clear()
    hub.store.objects.clear()


@pytest.fixture
def repo(hub: HubServer, small: Path, token: None) -> Iterator[str]:
    """A repository that holds the small directory, of the test's own."""
    command(small, 'org/own')
    hub.requests.clear()
    yield 'org/own'
    for folder in (hub.root / 'org').glob('own*'):
        shutil.rmtree(folder)


def command(*args: object) -> str:
    """What it prints; it must succeed."""
    result = call(app, *args)
    assert result.returncode == 0, result.stderr
    return result.stdout


def failure(*args: object) -> str:
    """The one line that it ends with."""
    result = call(app, *args)
    message = result.stderr.removesuffix('\n')
    assert result.returncode == 1 and message.startswith('error: ') and '\n' not in message
    return message


def sent(hub: HubServer) -> list[str]:
    """Paths of the requests that change something."""
    return [path for method, path in hub.requests if method in ('POST', 'PUT')]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*')} - {'.gitattributes'}


# There


def test_published(published: str, hub: HubServer, converted: Path) -> None:
    """Four files, bit by bit, and no other; the commit and the two lines that load it are printed."""
    folder = hub.root / REPO
    assert names(folder) == FILES
    for name in FILES - {'README.md'}:
        assert (folder / name).read_bytes() == (converted / name).read_bytes()
    assert (folder / 'README.md').read_text() == render(converted, REPO, 'other')
    assert re.search(rf'^Published: {hub.url}/{REPO}/commit/[0-9a-f]{{40}}$', published, re.MULTILINE)
    assert published.endswith(
        f"\nimport timm, xception_hub\nmodel = timm.create_model('hf-hub:{REPO}', pretrained=True)\n"
    )


def test_once_more(repo: str, hub: HubServer, directory: Path) -> None:
    """The same content is not sent again."""
    output = command(directory, repo)
    assert 'Nothing to do' in output and 'hf-hub:' in output
    assert not [path for path in sent(hub) if 'commit' in path or 'storage' in path]


def test_change(repo: str, hub: HubServer, directory: Path) -> None:
    """One commit of what differs."""
    config = json.loads((directory / 'config.json').read_text())
    config['pretrained_cfg']['label_names'][0] = config['id2label']['0'] = 'mug'
    (directory / 'config.json').write_text(json.dumps(config))
    (directory / 'optimizer.pth').write_bytes(b'')
    output = command(directory, repo, '--license', 'other', '--message', 'Cups are mugs')
    assert 'Not published: optimizer.pth\n' in output
    assert [path for path in sent(hub) if 'commit' in path] == [f'/api/models/{repo}/commit/main']
    assert not [path for path in sent(hub) if 'storage' in path]
    assert json.loads((hub.root / repo / 'config.json').read_text())['id2label']['0'] == 'mug'
    assert 'mug, fork' in (hub.root / repo / 'README.md').read_text()
    assert names(hub.root / repo) == FILES


def test_without_proofs(repo: str, hub: HubServer, directory: Path) -> None:
    """A directory that was fine-tuned since takes the place of what was proven, and the proofs go."""
    (directory / 'parity.json').unlink()
    assert re.search(r'parity\.json +removed\n', command(directory, repo))
    assert names(hub.root / repo) == FILES - {'parity.json'}


@pytest.mark.parametrize('answers', [True, False])
def test_dry_run(answers: bool, hub: HubServer, small: Path) -> None:
    """Shows all files and the card, asks the hub without a token, and changes nothing; a hub need not answer."""
    if not answers:
        hub.faults[''] = Fault.CLOSED
    output = command(small, 'org/dry', '--dry-run', '--space')
    state = 'does not exist' if answers else 'the Hub could not be asked. org/dry: RemoteProtocolError'
    assert output.startswith(f'{hub.url}/org/dry, branch main: {state}')
    assert re.search(r'model\.safetensors +\d\.\d MB\n', output) and re.search(r'app\.py +0\.1 kB\n', output)
    assert f'README.md:\n\n{render(small, "org/dry")}' in output and output.endswith('nothing was sent.\n')
    assert sent(hub) == [] and not (hub.root / 'org/dry').exists()


def test_branch(repo: str, hub: HubServer, small: Path) -> None:
    """It is created, and main stays as it was."""
    before = (hub.root / repo / 'README.md').read_text()
    output = command(small, repo, '--revision', 'v2')
    assert f"'hf-hub:{repo}@v2'" in output
    assert f'hf-hub:{repo}@v2' in (hub.root / f'{repo}@v2' / 'README.md').read_text()
    assert (hub.root / repo / 'README.md').read_text() == before
    assert 'Nothing to do' in command(small, repo, '--revision', 'v2')


def test_space(repo: str, hub: HubServer, small: Path) -> None:
    """A page for the model, as a repository of its own, which loads the model by its name."""
    output = command(small, repo, '--space')
    assert re.search(rf'^Published: {hub.url}/spaces/{repo}/commit/[0-9a-f]{{40}}$', output, re.MULTILINE)
    space = hub.root / 'spaces' / repo
    assert names(space) == {'app.py', 'requirements.txt', 'README.md'}
    assert f"launch('hf-hub:{repo}')" in (space / 'app.py').read_text()
    card = yaml.safe_load((space / 'README.md').read_text().split('---')[1])
    assert card.items() >= dict(sdk='gradio', app_file='app.py', models=[repo]).items()
    assert command(small, repo, '--space').count('Nothing to do') == 2
    shutil.rmtree(space)


def test_private(repo: str, hub: HubServer, small: Path) -> None:
    """Nobody reads it without the token; and a public repository is not taken for a private one."""
    command(small, 'org/private', '--private')
    assert huggingface_hub.HfApi().model_info('org/private').private
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        huggingface_hub.HfApi(token=False).model_info('org/private')
    assert '--private' in failure(small, repo, '--private')


def test_from_a_script(repo: str, hub: HubServer, small: Path) -> None:
    commit_url = publish(small, repo, license='mit', message='From a script')
    assert commit_url and commit_url.startswith(f'{hub.url}/{repo}/commit/')
    assert 'mit' in (hub.root / repo / 'README.md').read_text()


# And back


@pytest.mark.parametrize(
    'way',
    ['timm', 'torch.hub', pytest.param('transformers', marks=[pytest.mark.needs('transformers'), pytest.mark.slow])],
)
def test_block(
    way: str, published: str, hub: HubServer, reader: Path, model: nn.Module, photo: Path, checkpoint: Checkpoint
) -> None:
    """In a fresh process; torch.hub takes a clone instead of GitHub's archive, and the rest as it stands there."""
    card = (hub.root / REPO / 'README.md').read_text()
    code = dict(re.findall(r'^### ([\w.]+)\n\n(?:[^\n]+\n\n)?```python\n(.*?)^```', card, re.MULTILINE | re.DOTALL))[
        way
    ]
    for there, here in {"'OWNER/xception_hub'": repr(str(ROOT)), 'trust_repo=True': "source='local'"}.items():
        code = code.replace(there, here)
    if way == 'transformers':
        result = python(code, reader)
    else:
        result = run_code(code + USE, reader, reader / 'log', HF_HUB_CACHE=str(reader / 'hub'))
    assert result[0] == 0, result[1]
    if way != 'torch.hub':  # which stops at the model
        assert re.findall('|'.join(CLASS_NAMES), result[1]) == [checkpoint.labels[photo.stem]]
    if way != 'transformers':  # which shows no logits
        with torch.inference_mode():  # bit by bit what the directory computes
            assert torch.equal(torch.load(reader / 'logits.pt'), model(torch.load(reader / 'images.pt')))


# Refused before anything is sent


@pytest.mark.parametrize(
    ('repo_id', 'reason'),
    [
        ('kitchenware', "repo id 'kitchenware' has no owner. Pass org/name"),
        ('org/kitchen ware', "repo id 'org/kitchen ware': Repo id must use"),
        ('https://huggingface.co/org/name', 'Pass org/name'),
    ],
)
def test_wrong_repo_id(repo_id: str, reason: str, small: Path, hub: HubServer) -> None:
    with pytest.raises(PublishError, match=re.escape(reason)):
        make_upload(small, repo_id)
    assert hub.requests == []


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def a_pickle(directory: Path) -> None:
    (directory / 'model.safetensors').unlink()
    torch.save({}, directory / 'pytorch_model.bin')


def not_finite(directory: Path) -> None:
    with (directory / 'model.safetensors').open('r+b') as file:
        file.seek(-4, os.SEEK_END)
        file.write(b'\0\0\xc0\x7f')  # NaN, in float32


DAMAGES = {
    'no directory': (lambda d: shutil.rmtree(d), 'model.safetensors'),
    'no config': (lambda d: (d / 'config.json').unlink(), 'config.json'),
    'a config that is no JSON': (lambda d: (d / 'config.json').write_text('{'), 'JSON'),
    'another network': (lambda d: change(d / 'config.json', architecture='resnet50'), "'resnet50'"),
    'an unknown argument': (lambda d: change(d / 'config.json', model_args=dict(depth=3)), 'depth'),
    'another width': (lambda d: change(d / 'config.json', model_args=dict(fc_widths=[99])), 'does not load'),
    'two names': (lambda d: change(d / 'config.json', id2label=dict.fromkeys('012', 'cup')), 'id2label'),
    'names that are no table': (lambda d: change(d / 'config.json', id2label=['cup']), 'id2label'),
    'too few names': (lambda d: change(d / 'config.json', label_names=['cup']), 'list of 3 names'),
    'no list of names': (lambda d: change(d / 'config.json', label_names=5), 'but is 5'),
    'a failed proof': (lambda d: change(d / 'parity.json', passed=False), 'passed: False'),
    'a pickle': (a_pickle, 'has no model.safetensors'),
    'a number that is none': (not_finite, 'NaN'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_directory(damage: str, directory: Path, hub: HubServer) -> None:
    act, reason = DAMAGES[damage]
    act(directory)
    with pytest.raises(XceptionHubError, match=re.escape(reason)):
        make_upload(directory, 'org/damaged')
    assert hub.requests == []


# Refused by the hub, or not reached


def test_without_a_token(small: Path) -> None:
    message = failure(small, 'org/nobody')
    assert 'org/nobody' in message and '`hf auth login`' in message


TROUBLE = {
    'no server': ('', Fault.CLOSED, 'HF_ENDPOINT'),
    'not their organisation': ('/api/repos/create', Fault.FORBIDDEN, '403, Forbidden. Log in with'),
    'an error before the upload': ('preupload', Fault.SERVER_ERROR, 'the Hub answers 500'),
    'half of the weights': ('/storage/', Fault.HALF, "Error while uploading 'model.safetensors' to the Hub"),
    'an error in storage': ('/storage/', Fault.SERVER_ERROR, 'the Hub answers 500'),
    'half of the commit': ('/commit/', Fault.HALF, 'Run the command again; it sends the missing files'),
    'no answer to the commit': ('/commit/', Fault.CLOSED, 'RemoteProtocolError: Server disconnected'),
}


@pytest.mark.parametrize('trouble', TROUBLE)
def test_trouble(trouble: str, token: None, hub: HubServer, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed, the reason is given, and the next attempt succeeds."""
    monkeypatch.setattr('huggingface_hub.utils._http.time.sleep', lambda seconds: None)  # before it tries again
    part, fault, reason = TROUBLE[trouble]
    name = f'org/{trouble.replace(" ", "-")}'
    hub.faults[part] = fault
    assert reason in failure(small, name)
    assert not (hub.root / name).exists() or names(hub.root / name) == set()
    hub.faults.clear()
    command(small, name)
    assert names(hub.root / name) == FILES


def test_wrong_token(repo: str, hub: HubServer, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HF_TOKEN', 'hf_of_someone_else')
    message = failure(small, repo)
    assert f'{repo}: the Hub answers 401' in message and '`hf auth login`' in message


def test_unknown_licence(repo: str, hub: HubServer, small: Path) -> None:
    message = failure(small, repo, '--license', 'mine')
    assert '"license" must be one of' in message and '--license' in message


def test_someone_else_was_faster(repo: str, hub: HubServer, small: Path) -> None:
    plan = make_upload(small, repo)
    (hub.root / repo / 'config.json').write_text('{}')
    with pytest.raises(PublishError, match='412.*Run the command again'):
        send(plan)
    assert (hub.root / repo / 'config.json').read_text() == '{}'
