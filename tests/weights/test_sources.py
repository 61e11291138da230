"""Pretrained weights: several sources in order, each checked, and never a model that is half loaded."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from conftest import save_repository
from hub_server import Fault, HubServer
from patience import patience
from random_model import images
from timm.models import get_pretrained_cfg
from timm.models._registry import _model_pretrained_cfgs
from torch import Tensor

import xception_hub
from benchmarks.checkpoints import to_legacy
from xception_hub.errors import CheckpointError, WeightsError
from xception_hub.weights.fingerprints import EPS_COMPENSATION, compare
from xception_hub.weights.pretrained import OFFLINE_REMEDY
from xception_hub.weights.sources import _reach_hub

FIRST = 'smp-hub/xception.imagenet'


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubServer) -> Iterator[None]:
    """An empty cache for each test, the hub without faults, and no warning left unnoticed."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    hub.requests.clear()
    yield
    hub.faults.clear()


@pytest.fixture
def second_source(hub: HubServer, imagenet_state_dict: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """timm's release file, served from this machine: a pickle whose name holds the beginning of its sha256."""
    folder = hub.root / 'files'
    folder.mkdir(exist_ok=True)
    torch.save(to_legacy(imagenet_state_dict, 'last_linear'), folder / 'xception.pth')
    digest = hashlib.sha256((folder / 'xception.pth').read_bytes()).hexdigest()
    file = (folder / 'xception.pth').rename(folder / f'xception-{digest[:8]}.pth')
    monkeypatch.setattr(_model_pretrained_cfgs['xception_paper.keras_in1k'], 'url', f'{hub.url}/files/{file.name}')
    return file


@pytest.fixture
def unreachable_second_source(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _model_pretrained_cfgs['xception_paper.keras_in1k'], 'url', f'{hub.url}/files/xception-00000000.pth'
    )


def assert_holds(model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


# The order, and its pins


def test_sources_are_pinned() -> None:
    cfg = get_pretrained_cfg('xception_paper')
    assert re.fullmatch(r'smp-hub/xception\.imagenet@[0-9a-f]{40}', cfg.hf_hub_id)
    assert re.search(r'-[0-9a-f]{8,}\.pth$', cfg.url)
    assert (cfg.tag, cfg.num_classes) == ('keras_in1k', 1000)


def test_first_source(hub: HubServer, imagenet_state_dict: dict[str, Tensor]) -> None:
    """Bit-equal tensors under this network's names, at the pinned revision, and nothing else is asked."""
    model = timm.create_model('xception_paper', pretrained=True)
    assert_holds(model, imagenet_state_dict)
    revision = get_pretrained_cfg('xception_paper').hf_hub_id.partition('@')[2]
    assert {path for _, path in hub.requests} >= {f'/{FIRST}/resolve/{revision}/model.safetensors'}
    assert not any('files' in path for _, path in hub.requests)
    assert all(p.requires_grad and not p.is_meta and p.dtype is torch.float32 for p in model.parameters())


# the client tries again for 20 seconds where the server has an error
@pytest.mark.parametrize(
    'fault', [pytest.param(fault, marks=[pytest.mark.slow] * (fault is Fault.SERVER_ERROR)) for fault in Fault]
)
def test_second_source(
    fault: Fault, hub: HubServer, second_source: Path, imagenet_state_dict: dict[str, Tensor]
) -> None:
    """The first fails in any way: a warning names it, its cause, and the second, whose tensors are as good."""
    hub.faults['smp-hub'] = fault
    with pytest.warns(UserWarning, match=rf'No weights from {FIRST}.*Next: http.*{second_source.name}'):
        model = timm.create_model('xception_paper', pretrained=True)
    assert_holds(model, imagenet_state_dict)


def test_failed_download_leaves_nothing_behind(
    hub: HubServer, unreachable_second_source: None, imagenet_state_dict: dict[str, Tensor]
) -> None:
    """Half a file, then the whole one: the second attempt succeeds."""
    hub.faults['model.safetensors'] = Fault.HALF
    with pytest.warns(UserWarning, match='No weights from'), pytest.raises(xception_hub.WeightsError):
        timm.create_model('xception_paper', pretrained=True)
    hub.faults.clear()
    assert_holds(timm.create_model('xception_paper', pretrained=True), imagenet_state_dict)


def test_all_sources_fail(hub: HubServer, unreachable_second_source: None) -> None:
    """One error: each source with its cause, and the command that helps offline."""
    hub.faults['smp-hub'] = Fault.NOT_FOUND
    with pytest.warns(UserWarning, match='No weights from'), pytest.raises(xception_hub.WeightsError) as error:
        timm.create_model('xception_paper', pretrained=True)
    message = str(error.value)
    assert re.search(rf'1\. {FIRST}@[0-9a-f]+: \w+: .*404', message)
    assert re.search(r'2\. http.*xception-00000000\.pth: HTTPError: .*404', message)
    assert 'python -m conversion.convert xception_weights_tf_dim_ordering_tf_kernels.h5 -o DIR' in message
    assert OFFLINE_REMEDY in message


def test_release_file_of_another_content(hub: HubServer, second_source: Path) -> None:
    """The beginning of the sha256 in its name is checked, and the file doesn't stay in the cache."""
    hub.faults['smp-hub'] = Fault.NOT_FOUND
    second_source.write_bytes(b'something else')
    with pytest.warns(UserWarning, match='No weights'), pytest.raises(xception_hub.WeightsError, match='invalid hash'):
        timm.create_model('xception_paper', pretrained=True)
    assert not list((Path(torch.hub.get_dir()) / 'checkpoints').glob('*.pth'))


# What a source holds


@pytest.fixture
def served(hub: HubServer) -> Iterator[Path]:
    """The first source's file, put back afterwards."""
    file = hub.root / FIRST / 'model.safetensors'
    backup = file.rename(file.with_suffix('.backup'))
    yield file
    backup.replace(file)


def headless(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith('head.')}


def changed(tensors: dict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    tensor = tensors[name].clone()
    tensor.view(-1)[3] = value
    return {**tensors, name: tensor}


WRONG_CONTENT = {
    'lacks the classifier': (headless, 'Its head has 0 classes. Pass num_classes=0'),
    'holds NaN': (lambda t: changed(t, 'head.fc.weight', float('nan')), 'head.fc.weight holds NaN'),
}


@pytest.mark.parametrize('kind', WRONG_CONTENT)
def test_wrong_content(kind: str, served: Path, second_source: Path, imagenet_state_dict: dict[str, Tensor]) -> None:
    """Leads to the next source, with the reason."""
    change, reason = WRONG_CONTENT[kind]
    save_repository(served.parent, to_legacy(change(imagenet_state_dict)))
    with pytest.warns(UserWarning, match=rf'No weights from {FIRST}.*{reason}.*Next: '):
        model = timm.create_model('xception_paper', pretrained=True)
    assert_holds(model, imagenet_state_dict)


def blobs() -> dict[str, bytes]:
    """Contents of the Hub's cache."""
    return {path.name: path.read_bytes() for path in Path(huggingface_hub.constants.HF_HUB_CACHE).glob('*/blobs/*')}


def take_way_out(message: str) -> None:
    """Runs the command in a message that downloads a file anew."""
    command = re.search(r'anew: hf (.*? --force-download)', message)
    assert command, message
    hf, cache = Path(sys.executable).with_name('hf'), huggingface_hub.constants.HF_HUB_CACHE
    environment = {**os.environ, 'HF_HUB_CACHE': str(cache)}
    subprocess.run([hf, *shlex.split(command[1])], check=True, capture_output=True, env=environment)


def flip(file: Path) -> None:
    """Changes a byte of a tensor in the middle of a cached file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ('damage', 'reason'), [(flip, '233 of 234 tensors bit-identical'), (truncate, 'not a complete safetensors file')]
)
def test_corrupt_cache_of_the_hub(
    damage: Callable[[Path], None],
    reason: str,
    hub: HubServer,
    second_source: Path,
    imagenet_state_dict: dict[str, Tensor],
) -> None:
    """Bits that change on the disk: the next source serves, until the file is downloaded anew as the warning says."""
    timm.create_model('xception_paper', pretrained=True)
    (blob,) = Path(huggingface_hub.constants.HF_HUB_CACHE).glob('models--*/blobs/*')
    damage(blob)
    corrupt = blobs()
    with pytest.warns(UserWarning, match=reason) as warned:
        assert_holds(timm.create_model('xception_paper', pretrained=True), imagenet_state_dict)
    assert blobs() == corrupt
    take_way_out(str(warned[0].message))
    assert_holds(timm.create_model('xception_paper', pretrained=True), imagenet_state_dict)


def test_corrupt_cache_of_the_release_file(
    hub: HubServer, second_source: Path, imagenet_state_dict: dict[str, Tensor]
) -> None:
    """Its sha256 is checked at each use, and it is downloaded anew."""
    hub.faults['smp-hub'] = Fault.NOT_FOUND
    for _ in range(2):
        with pytest.warns(UserWarning, match=f'No weights from {FIRST}'):
            assert_holds(timm.create_model('xception_paper', pretrained=True), imagenet_state_dict)
        flip(next((Path(torch.hub.get_dir()) / 'checkpoints').glob('*.pth')))


def test_source_without_classifier_serves_those_who_need_none(
    served: Path, imagenet_state_dict: dict[str, Tensor]
) -> None:
    save_repository(served.parent, to_legacy(headless(imagenet_state_dict)))
    assert_holds(timm.create_model('xception_paper', pretrained=True, num_classes=5), headless(imagenet_state_dict))
    assert timm.create_model('xception_paper', pretrained=True, features_only=True)


def test_eps_compensation_is_taken_off(served: Path, imagenet_state_dict: dict[str, Tensor]) -> None:
    """Variances made for eps 1e-5 become those of Keras again, and the model computes what it should."""
    compensated = {
        name: (tensor.double() + EPS_COMPENSATION).float() if name.endswith('running_var') else tensor
        for name, tensor in imagenet_state_dict.items()
    }
    found = compare(compensated)
    assert (len(found.identical), len(found.compensated), len(found.different)) == (194, 40, 0)
    save_repository(served.parent, to_legacy(compensated))
    restored = timm.create_model('xception_paper', pretrained=True).eval()
    expected = timm.create_model('xception_paper').eval()
    expected.load_state_dict(imagenet_state_dict)
    with torch.inference_mode():
        torch.testing.assert_close(restored(images(150, 150)), expected(images(150, 150)), rtol=1e-4, atol=1e-4)
    for name, tensor in imagenet_state_dict.items():
        torch.testing.assert_close(restored.state_dict()[name], tensor, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize('change', [0.5e-3, 1.01 * EPS_COMPENSATION, 1e-5])
def test_another_shift_is_no_compensation(change: float, imagenet_state_dict: dict[str, Tensor]) -> None:
    shifted = {
        name: tensor + change if name.endswith('running_var') else tensor
        for name, tensor in imagenet_state_dict.items()
    }
    assert len(compare(shifted).different) == 40


# A repository of the user's own


@pytest.fixture(scope='module')
def own_weights(imagenet_state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Not those of Keras."""
    return changed(imagenet_state_dict, 'stem.conv1.weight', 0.5)


@pytest.fixture
def own_repository(hub: HubServer, own_weights: dict[str, Tensor]) -> Iterator[str]:
    save_repository(hub.root / 'org' / 'own', own_weights)
    save_repository(hub.root / 'org' / 'own@v2', own_weights)
    yield 'org/own'
    for folder in ('own', 'own@v2'):
        shutil.rmtree(hub.root / 'org' / folder)


@pytest.mark.parametrize('revision', ['', '@v2'])
def test_variable_names_a_repository(
    revision: str, own_repository: str, own_weights: dict[str, Tensor], hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('XCEPTION_HUB_REPO', own_repository + revision)
    assert_holds(timm.create_model('xception_paper', pretrained=True), own_weights)
    assert not any(FIRST in path for _, path in hub.requests)


@pytest.mark.parametrize('key', ['hf_hub_id', 'file', 'state_dict'])
def test_keyword(
    key: str, own_repository: str, own_weights: dict[str, Tensor], hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's own keyword comes before the variable."""
    monkeypatch.setenv('XCEPTION_HUB_REPO', '/nowhere')
    values = dict(hf_hub_id=own_repository, file=str(hub.root / own_repository), state_dict=own_weights)
    model = timm.create_model('xception_paper', pretrained=True, pretrained_cfg_overlay={key: values[key]})
    assert_holds(model, own_weights)


def test_what_was_named_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A typo in the name of a repository, file, directory or address is an error, never ImageNet's weights."""
    monkeypatch.setenv('XCEPTION_HUB_REPO', 'org/nothing')
    with pytest.raises(WeightsError, match=r'^org/nothing has no weights.*no other source'):
        timm.create_model('xception_paper', pretrained=True)
    monkeypatch.delenv('XCEPTION_HUB_REPO')
    missing = str(tmp_path / 'finetund.pth')
    for overlay in (dict(file=missing), dict(hf_hub_id='org/typo'), dict(state_dict={'fc.weight': torch.zeros(2, 2)})):
        with pytest.raises(WeightsError, match='no other source stands in for it') as error:
            timm.create_model('xception_paper', pretrained=True, pretrained_cfg_overlay=overlay)
        assert 'Without a network' not in str(error.value)
    for name in (f'local-dir:{tmp_path}', 'hf-hub:org/nothing'):
        (tmp_path / 'config.json').write_text('{"architecture": "xception_paper"}')
        with pytest.raises(Exception, match='nothing|no weights'):
            timm.create_model(name, pretrained=True)


@pytest.mark.parametrize(
    ('config', 'reason'),
    [
        ('{"architecture": "resnet50"}', "says architecture 'resnet50', not 'xception_paper'"),
        ('{"architecture": "xception_paper", "model_args": {"bn_eps": 1e-5}}', 'says bn_eps=1e-05, but the model has'),
        ('{"archit', 'is not JSON'),
        ('[]', 'holds a list'),
    ],
)
def test_own_repository_of_something_else(
    config: str, reason: str, own_weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_repository(tmp_path / 'own', own_weights, config=config)
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(tmp_path / 'own'))
    with pytest.raises(WeightsError, match=re.escape(reason)):
        timm.create_model('xception_paper', pretrained=True)


def test_weights_trained_in_the_legacy_lineage_keep_its_numerics(
    own_weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused in the numerics of Keras, and taken in their own."""
    save_repository(tmp_path / 'own', to_legacy(own_weights))
    monkeypatch.setenv('XCEPTION_HUB_REPO', str(tmp_path / 'own'))
    with pytest.raises(WeightsError, match='from_checkpoint, or pass bn_eps=1e-05'):
        timm.create_model('xception_paper', pretrained=True)
    model = timm.create_model('xception_paper', pretrained=True, bn_eps=1e-5, pool_padding='symmetric')
    assert_holds(model, own_weights)


# What users of timm expect


def test_other_number_of_classes(imagenet_state_dict: dict[str, Tensor]) -> None:
    model = timm.create_model('xception_paper', pretrained=True, num_classes=3)
    assert_holds(model, headless(imagenet_state_dict))
    assert model.head.fc.weight.shape == (3, 2048)
    assert model.head.fc.weight.std() > 0


def test_other_channels(imagenet_state_dict: dict[str, Tensor]) -> None:
    """Grey images: the sum over the colours, so that a grey colour image gives the same."""
    grey, colour = (timm.create_model('xception_paper', pretrained=True, in_chans=n).eval() for n in (1, 3))
    x = images(150, 150, chans=1)
    with torch.inference_mode():
        torch.testing.assert_close(grey(x), colour(x.expand(1, 3, 150, 150)), rtol=1e-3, atol=1e-3)


def test_hidden_layers_start_afresh(imagenet_state_dict: dict[str, Tensor], unreachable_second_source: None) -> None:
    """The paper's fully connected layers on the published backbone."""
    with (
        pytest.warns(UserWarning, match='fc has other layers than head_layers='),
        pytest.raises(xception_hub.WeightsError),
    ):
        timm.create_model('xception_paper', pretrained=True, fc_widths=(64, 64))
    model = timm.create_model('xception_paper', pretrained=True, fc_widths=(64, 32), num_classes=3)
    assert_holds(model, headless(imagenet_state_dict))
    assert model.head.fc_layers.fc2.weight.std() > 0


def test_device_and_dtype() -> None:
    model = timm.create_model('xception_paper', pretrained=True, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert timm.create_model('xception_paper', pretrained=True, device='meta').head.fc.weight.is_meta


def test_cache_dir_and_offline(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagenet_state_dict: dict[str, Tensor]
) -> None:
    """A warm cache needs no network, of which not one request tells."""
    timm.create_model('xception_paper', pretrained=True, cache_dir=tmp_path / 'elsewhere')
    assert list((tmp_path / 'elsewhere').glob('models--smp-hub--xception.imagenet/blobs/*'))
    hub.requests.clear()
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    model = timm.create_model('xception_paper', pretrained=True, cache_dir=tmp_path / 'elsewhere')
    assert_holds(model, imagenet_state_dict)
    with (
        pytest.warns(UserWarning, match='No weights'),
        pytest.raises(xception_hub.WeightsError, match='HF_HUB_OFFLINE'),
    ):
        timm.create_model('xception_paper', pretrained=True, cache_dir=tmp_path / 'empty')
    assert hub.requests == []


def test_warm_cache_asks_nobody(hub: HubServer) -> None:
    timm.create_model('xception_paper', pretrained=True)
    hub.requests.clear()
    _reach_hub.cache_clear()
    timm.create_model('xception_paper', pretrained=True)
    assert hub.requests == []


@pytest.mark.parametrize('source', ['hf-hub:org/kitchenware', 'local-dir'])
def test_by_the_name_of_a_repository(source: str, hub: HubServer, converted: Path) -> None:
    """config.json decides: classes, hidden layer, preprocessing, class names; the weights are the repository's."""
    shutil.copytree(converted, hub.root / 'org' / 'kitchenware', dirs_exist_ok=True)
    name = f'local-dir:{converted}' if source == 'local-dir' else source
    model = timm.create_model(name, pretrained=True).eval()
    assert (model.num_classes, model.head_hidden_size) == (6, 100)
    data = timm.data.resolve_data_config(model=model)
    assert (data['input_size'], data['interpolation'], data['crop_mode']) == ((3, 150, 150), 'nearest', 'squash')
    assert model.pretrained_cfg['label_names'] == ['cup', 'fork', 'glass', 'knife', 'plate', 'spoon']


NEW_HEADS: dict[str, tuple[dict[str, Any], int]] = {
    'another task': (dict(num_classes=2), 2),
    'no classifier': (dict(num_classes=0), 0),
    'features': (dict(num_classes=0, fc_widths=()), 0),
    'no layers before it': (dict(head_layers=[]), 6),
    'no widths': (dict(fc_widths=[]), 6),
}


@pytest.mark.parametrize('kind', NEW_HEADS)
def test_layers_before_the_classifier_go(kind: str, converted: Path) -> None:
    """A start for another task is the backbone; the sentence says how to keep the layers."""
    arguments, classes = NEW_HEADS[kind]
    name = f'local-dir:{converted}'
    with pytest.warns(UserWarning, match='left out.*reset_classifier') as warning:
        model = timm.create_model(name, pretrained=True, **arguments).eval()
    assert (model.num_classes, model.head_hidden_size) == (classes, 2048)
    whole = timm.create_model(name, pretrained=True).eval()
    x = images(96, 96)
    with torch.inference_mode():
        assert torch.equal(model.forward_features(x), whole.forward_features(x))
    code = str(warning[0].message).rpartition('call ')[2].rstrip('.')
    exec(code, dict(model=whole))
    assert (whole.num_classes, whole.head_hidden_size) == (classes, 100)
    from_file = converted / 'model.safetensors'
    with pytest.warns(UserWarning, match='left out'):
        again = xception_hub.from_checkpoint(from_file, **arguments)
    with torch.inference_mode():
        assert torch.equal(again.forward_features(x), model.forward_features(x))
    assert (again.num_classes, again.head_hidden_size) == (classes, 2048)


@pytest.mark.parametrize('place', ['file', 'variable'])
def test_named_directory_with_layers_before_the_classifier(
    place: str, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backbone serves every other task; its head is had by its arguments, or not at all."""
    named: dict[str, Any] = {}
    if place == 'file':
        named = dict(pretrained_cfg_overlay=dict(file=str(converted)))
    else:
        monkeypatch.setenv('XCEPTION_HUB_REPO', str(converted))
    create = partial(timm.create_model, 'xception_paper', pretrained=True, **named)
    whole = timm.create_model(f'local-dir:{converted}', pretrained=True)
    backbone = {name: tensor for name, tensor in whole.state_dict().items() if name.startswith('exit_flow.')}
    for arguments in (dict(num_classes=0), dict(num_classes=7), dict(num_classes=0, global_pool='', in_chans=1)):
        with pytest.warns(UserWarning, match=r'left out.*local-dir'):
            model = create(**arguments)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in backbone.items())
    assert len(create(features_only=True)(images(96, 96))) == 5
    for arguments in ({}, dict(num_classes=6)):
        with pytest.raises(
            WeightsError, match=r'Its head has 6 classes.*\. Pass num_classes=6, .*, or num_cl'
        ) as error:
            create(**arguments)
    passed = re.search(r'Pass (.*), or num_classes=0', str(error.value))
    assert passed
    for arguments in (eval(f'dict({passed[1]})'), dict(num_classes=6, fc_widths=(100,))):
        assert torch.equal(create(**arguments).head.fc.weight, whole.head.fc.weight)


def test_other_layers_before_the_classifier_are_not_replaced(converted: Path) -> None:
    create = partial(timm.create_model, f'local-dir:{converted}', pretrained=True)
    with pytest.raises(xception_hub.WeightsError, match='Its head has 6 classes') as error:
        create(fc_widths=[50], head_layers=[])
    passed = re.search(r'Pass (.*), or num_classes=0', str(error.value))
    assert passed
    assert create(**eval(f'dict({passed[1]})')).head_hidden_size == 100


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The answer comes at once, and says what cannot be reached; a file in the cache needs no network."""
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    start = time.perf_counter()
    with pytest.raises(xception_hub.WeightsError, match=r'not in the cache, and http://127.0.0.1:9 cannot be reached'):
        timm.create_model(
            'xception_paper', pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id='org/none'), cache_dir=tmp_path
        )
    assert time.perf_counter() - start < patience(5)


def test_a_loaded_directory_may_be_overwritten(converted: Path, tmp_path: Path) -> None:
    """Local files are read, not mapped: saving a model where it came from must not pull its weights away."""
    shutil.copytree(converted, tmp_path / 'model')
    model = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True)
    before = model.stem.conv1.weight.sum()
    (tmp_path / 'model' / 'model.safetensors').write_bytes(b'')
    assert model.stem.conv1.weight.sum() == before


def test_changing_a_model_leaves_the_cache_alone(imagenet_state_dict: dict[str, Tensor]) -> None:
    """Mapped weights are private: training writes into memory, not into the cached file."""
    with torch.no_grad():
        for parameter in timm.create_model('xception_paper', pretrained=True).parameters():
            parameter.zero_()
    assert_holds(timm.create_model('xception_paper', pretrained=True), imagenet_state_dict)


# What from_checkpoint and verify take


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('HOME', str(tmp_path))
    return tmp_path


def test_every_kind_of_address(
    home: Path, own_repository: str, own_weights: dict[str, Tensor], hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory, the home directory, a hub id, a page of the Hub, an address."""
    save_repository(home / 'directory', own_weights)
    torch.save(own_weights, home / 'x.pth')
    (hub.root / 'files').mkdir(exist_ok=True)
    shutil.copy(home / 'x.pth', hub.root / 'files' / 'own-face.pth')
    monkeypatch.chdir(home)
    addresses = [
        home / 'directory', '~/directory', 'local-dir:~/directory', '~/x.pth', './x.pth', 'directory/model.safetensors',
        own_repository, f'{own_repository}@v2', f'hf-hub:{own_repository}', f'{hub.url}/{own_repository}',
        f'{hub.url}/{own_repository}/tree/main', f'{hub.url}/{own_repository}/blob/v2/model.safetensors?download=true',
        f'{hub.url}/{own_repository}/resolve/main/model.safetensors', f'{hub.url}/files/own-face.pth',
    ]  # fmt: skip
    for address in addresses:
        with pytest.warns(UserWarning, match='Assumed: the numerics of Keras'):
            assert_holds(xception_hub.from_checkpoint(address), own_weights)
    assert xception_hub.verify(FIRST).is_genuine
    assert str(xception_hub.verify('~/x.pth')) == '233 of 234 tensors bit-identical, 1 different'


def test_addresses_with_the_same_name(hub: HubServer, imagenet_state_dict: dict[str, Tensor]) -> None:
    """Of two files called alike, none takes the place of the other."""
    for folder, value in (('a', 0.25), ('b', 0.75)):
        (hub.root / 'files' / folder).mkdir(parents=True, exist_ok=True)
        tensors = changed(imagenet_state_dict, 'head.fc.bias', value)
        torch.save(tensors, hub.root / 'files' / folder / 'model.pth')
    for folder, value in (('a', 0.25), ('b', 0.75), ('a', 0.25)):
        file = hub.root / 'files' / folder / 'model.pth'
        overlay = dict(url=f'{hub.url}/files/{folder}/{file.name}')
        model = timm.create_model('xception_paper', pretrained=True, pretrained_cfg_overlay=overlay)
        assert model.head.fc.bias[3] == value


def test_address_of_a_damaged_file(hub: HubServer, imagenet_state_dict: dict[str, Tensor]) -> None:
    """Half of it arrived, which torch does not notice. The error names the file to delete."""
    (hub.root / 'files').mkdir(exist_ok=True)
    safetensors.torch.save_file(imagenet_state_dict, hub.root / 'files' / 'half.safetensors')
    hub.faults['half'] = Fault.HALF
    with pytest.raises(CheckpointError, match='complete safetensors') as error:
        xception_hub.verify(f'{hub.url}/files/half.safetensors')
    hub.faults.clear()
    path = re.search(r'delete (\S+)\.$', str(error.value))
    assert path
    Path(path[1]).unlink()
    assert xception_hub.verify(f'{hub.url}/files/half.safetensors').is_genuine


@pytest.mark.parametrize('reachable', [True, False])
def test_typo(reachable: bool, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What may be a path or a hub id is neither: the error has both readings."""
    if not reachable:
        monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setenv('XCEPTION_HUB_REPO', 'typo/dir')
    both = 'typo/dir is no file and no directory on this machine. As a repository of the Hub'
    with pytest.raises(WeightsError, match=both):
        timm.create_model('xception_paper', pretrained=True)
    for function in (xception_hub.from_checkpoint, xception_hub.verify):
        with pytest.raises(CheckpointError, match=both):
            function('typo/dir')


@pytest.mark.parametrize('name', ['weights/x.pth', '~/nothing.safetensors', './typo', 'a/b/c', 'nothing', '/no/dir'])
def test_missing_path(name: str, hub: HubServer) -> None:
    """What is a path by its looks is never asked for on the Hub."""
    with pytest.raises(CheckpointError, match='There is no file'):
        xception_hub.from_checkpoint(name)
    assert hub.requests == []


def test_directory_without_weights(tmp_path: Path) -> None:
    """The files in it that may be meant are named; one of them loads."""
    tensors = timm.create_model('xception_paper', num_classes=2).state_dict()
    torch.save(tensors, tmp_path / 'best.pth')
    (tmp_path / 'notes.txt').write_text('x')
    with pytest.raises(CheckpointError, match=r'It has: best\.pth\. Name the file') as error:
        xception_hub.from_checkpoint(tmp_path)
    assert xception_hub.from_checkpoint(tmp_path / 'best.pth').num_classes == 2
    assert 'notes' not in str(error.value)


# Verification


def test_shipped_fingerprints_are_those_of_the_checkpoint(genuine_state_dict: dict[str, Tensor]) -> None:
    assert str(compare(genuine_state_dict)) == '234 of 234 tensors bit-identical'
