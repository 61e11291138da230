"""The same function, faster: no engine that computes something else, and no dead end."""

import copy
import json
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from port_a_keras_model import Checkpoint
from random_model import images, random_model
from torch import Tensor, nn

import xception_hub
from xception_hub import Xception
from xception_hub.errors import OptimizeError
from xception_hub.inference import check, engine_choices
from xception_hub.inference.check import TOLERANCES, Checked, Reference, as_list, relative_error
from xception_hub.inference.engines import ENGINES, Engine
from xception_hub.inference.optimize import ORIGINAL, OptimizedModel, optimize
from xception_hub.inference.photo_batches import Photos
from xception_hub.timing import lacks_bf16

SMALL: dict[str, Any] = dict(width_multiplier=0.1875, min_img_size=33, num_classes=5)
EXAMPLE = images(64, 75, batch=2)
SIZES = [(33, 40), (64, 75), (72, 61)]
PYTORCH = ENGINES['pytorch']


@pytest.fixture(scope='module')
def model() -> Xception:
    """Read only."""
    return random_model(**SMALL)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run at the same time; and no figure is wanted."""
    monkeypatch.setattr(check, 'BUSY', math.inf)
    monkeypatch.setattr(check, 'SECONDS', 0)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes PyTorch, and engines of a test's own, the only ones."""

    def only(**rows: Engine) -> None:
        for name in [name for name in ENGINES if name != 'pytorch']:
            monkeypatch.delitem(ENGINES, name)
        for name, row in rows.items():
            monkeypatch.setitem(ENGINES, name, row)

    return only


def assert_same(optimized: OptimizedModel, model: nn.Module) -> None:
    """At sizes of all parities, in batches of other sizes than the example's, as contiguous float32."""
    for size in SIZES:
        for batch in (1, 3):
            x = images(*size, batch=batch).to(memory_format=torch.channels_last).requires_grad_()
            found = optimized(x)
            with torch.no_grad():
                expected = model(x)
            assert type(found) is type(expected)
            assert relative_error(as_list(found), as_list(expected)) < 1e-4
            assert all(o.dtype == torch.float32 and o.is_contiguous() and not o.requires_grad for o in as_list(found))


def wrong(factor: float) -> Engine:
    """An engine whose outputs are too large."""
    return PYTORCH._replace(build=lambda reference: reference.checked(lambda x: reference.model(x) * factor))


def sleeping(reference: Reference) -> Checked:
    """Computes the same, and takes long."""
    return reference.checked(lambda x: (time.sleep(0.1), reference.model(x))[1])


# What comes out -------------------------------------------------------------------------------------------------------


OPENVINO = pytest.param('openvino', marks=pytest.mark.needs('openvino'))


@pytest.mark.parametrize('name', ['pytorch', pytest.param('onnxruntime', marks=pytest.mark.slow), OPENVINO])
def test_engine(name: str, model: Xception) -> None:
    before = copy.deepcopy(model.state_dict())
    optimized = xception_hub.optimize(model, EXAMPLE, name)
    assert optimized.engine == name and optimized.any_size and optimized.difference < 1e-5
    assert optimized.checked_on == '4 photos' and not optimized.notes
    assert optimized.gain == optimized.seconds[ORIGINAL] / optimized.seconds[name]
    assert f'{name}, fp32: {optimized.gain:.2f} times' in repr(optimized)
    assert_same(optimized, model)
    assert optimized(images(40, 40, batch=1)[:0]).shape == (0, 5)
    assert optimized.num_classes == 5 and optimized.pretrained_cfg == model.pretrained_cfg
    assert timm.data.resolve_data_config(model=optimized)['mean'] == (0.5, 0.5, 0.5)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) and tensor.is_contiguous()
    with pytest.raises(ValueError, match='32x40.*33x33'):
        optimized(images(32, 40))
    with pytest.raises(OptimizeError, match='torch.float64.*torch.float32'):
        optimized(EXAMPLE.double())


def test_bf16(model: Xception) -> None:
    """OpenVINO's is in test_export.py."""
    if lacks_bf16(torch.device('cpu')):
        pytest.skip('this CPU has no instructions for bf16')
    optimized = optimize(model, EXAMPLE, 'pytorch', 'bf16')
    assert 1e-4 < optimized.difference < TOLERANCES['bf16']
    assert optimized(EXAMPLE).dtype == torch.float32


@pytest.mark.parametrize(
    ('name', 'indices'),
    [('pytorch', (0, 4)), ('pytorch', (2,)), pytest.param('onnxruntime', (0, 4), marks=pytest.mark.slow)],
)
def test_maps(name: str, indices: tuple[int, ...]) -> None:
    """`features_only`: lists, also of one map, and with one that is as large as the stem."""
    model = timm.create_model('xception_paper', features_only=True, out_indices=indices, **SMALL).eval()
    optimized = optimize(model, EXAMPLE, name)
    assert_same(optimized, model)
    assert optimized.feature_info is model.feature_info  # type: ignore[attr-defined]


def test_another_model() -> None:
    model = timm.create_model('test_resnet').eval()
    assert_same(optimize(model, EXAMPLE, 'pytorch'), model)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['inductor', 'cudagraphs'])
def test_compilers(name: str) -> None:
    """On the CPU, where a CUDA graph is PyTorch without one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    function = ENGINES[name].build(Reference(model, EXAMPLE, 'fp32', Photos(EXAMPLE, 'images'))).run
    with torch.no_grad():
        for size in SIZES:
            assert relative_error([function(images(*size))], [model(images(*size))]) < 1e-5


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_head_of_one_size() -> None:
    """A head that flattens takes one size, and says so as the original does."""
    model = random_model(**SMALL, head_layers=[{'flatten': (3, 3)}])
    optimized = optimize(model, images(96, 96), 'pytorch')
    assert optimized(images(96, 96, batch=3)).shape == (3, 5)
    with pytest.raises(ValueError, match='size'):
        optimized(images(64, 64))


def test_engine_of_one_size(model: Xception, engines: Callable[..., None]) -> None:
    def build(reference: Reference) -> Checked:
        batch = ({0: torch.export.Dim.AUTO},)
        return reference.checked(torch.export.export(reference.folded, (EXAMPLE,), dynamic_shapes=batch).module())

    engines(fixed=Engine(build, devices=('cpu',), auto=('cpu',)))
    optimized = optimize(model, EXAMPLE, 'fixed')
    assert not optimized.any_size
    with pytest.raises(OptimizeError, match=r"fixed.*\[2, 3, 64, 75\].*engine='pytorch'"):
        optimized(images(72, 61))


# The choice -----------------------------------------------------------------------------------------------------------


def test_auto(model: Xception, engines: Callable[..., None], tmp_path: Path) -> None:
    """Measures once; the fastest of those that compute the same, and notes on others."""
    missing = PYTORCH._replace(packages=('no_such_package',), install='no-such-package')
    engines(sleeping=PYTORCH._replace(build=sleeping), wrong=wrong(1.001), missing=missing)
    file = tmp_path / 'new' / 'choices.json'
    optimized = optimize(model, EXAMPLE, choices=file)
    assert optimized.engine == 'pytorch'
    assert set(optimized.seconds) == {ORIGINAL, 'pytorch', 'sleeping'} and optimized.seconds['sleeping'] > 0.1
    assert [note.partition(' ')[0] for note in optimized.notes] == ['wrong', 'missing']
    assert 'no-such-package' in optimized.notes[1]
    ((key, entry),) = json.loads(file.read_text()).items()
    assert entry == {'engine': 'pytorch', 'seconds': optimized.seconds}

    again = optimize(model, EXAMPLE, choices=file)
    assert again.seconds == optimized.seconds and again.engine == 'pytorch'
    other = optimize(model, EXAMPLE[:1], choices=file)
    assert other.seconds != optimized.seconds and len(json.loads(file.read_text())) == 2

    for gone in ('wrong', 'removed'):  # what is remembered is an engine, not that it is right
        file.write_text(json.dumps({key: {'engine': gone, 'seconds': {ORIGINAL: 1, gone: 0.1}}}))
        assert optimize(model, EXAMPLE, choices=file).engine == 'pytorch'
        assert json.loads(file.read_text())[key]['engine'] == 'pytorch'


@pytest.mark.parametrize('copied', [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy(copied: Callable[[Any], Any], model: Xception, engines: Callable[..., None], tmp_path: Path) -> None:
    """On the same machine it has the same engine; later changes of the original or of the file do not matter."""
    engines(sleeping=PYTORCH._replace(build=sleeping))
    changed, example = copy.deepcopy(model), EXAMPLE.clone().requires_grad_()
    optimized = optimize(changed, example, photos=[], choices=tmp_path / 'choices.json')
    nn.init.zeros_(changed.train().head.fc.weight)
    nn.init.zeros_(example)
    (tmp_path / 'choices.json').unlink()
    for _ in range(2):  # a copy of a copy, too
        optimized = copied(optimized)
        assert optimized.engine == 'pytorch' and set(optimized.seconds) == {ORIGINAL, 'pytorch', 'sleeping'}
        assert optimized.pretrained_cfg == model.pretrained_cfg and 'times as fast' in repr(optimized)
        assert_same(optimized, model)
    assert not (tmp_path / 'choices.json').exists()


def test_loaded_elsewhere(
    model: Xception, engines: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine chooses again; a named engine that it lacks is an error with a remedy."""
    engines()
    chosen, named = (
        pickle.dumps(optimize(model, EXAMPLE, engine, choices=tmp_path / 'choices.json'))
        for engine in ('auto', 'pytorch')
    )
    monkeypatch.setattr(engine_choices, 'device_model', lambda device: 'another CPU')
    monkeypatch.setitem(ENGINES, 'fast', PYTORCH)
    monkeypatch.setitem(ENGINES, 'pytorch', PYTORCH._replace(build=sleeping))
    assert pickle.loads(chosen).engine == 'fast'
    monkeypatch.setitem(ENGINES, 'pytorch', PYTORCH._replace(packages=('no_such_package',), install='no-such-package'))
    with pytest.raises(OptimizeError, match='no-such-package'):
        pickle.loads(named)


@pytest.mark.parametrize('content', ['', '[]', '{"key": {"engine": "pytorch"}}', '\udc80'])
def test_damaged_choices(content: str, tmp_path: Path) -> None:
    file = tmp_path / 'choices.json'
    file.write_bytes(content.encode(errors='surrogateescape'))
    known, (note,) = engine_choices.read(file)
    assert not known and str(file) in note
    choices = {'key': {'engine': 'pytorch', 'seconds': {'pytorch': 1.0}}}
    assert engine_choices.write(file, choices) == [] and engine_choices.read(file) == (choices, [])


def test_choices_cannot_be_written(model: Xception, engines: Callable[..., None], tmp_path: Path) -> None:
    engines()
    (tmp_path / 'file').touch()
    notes = optimize(model, EXAMPLE, choices=tmp_path / 'file' / 'choices.json').notes
    assert len(notes) == 2 and 'cannot be read' in notes[0] and 'cannot be saved' in notes[1]


def test_busy_machine(
    model: Xception, engines: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice that says little is not remembered."""
    monkeypatch.setattr(check, 'BUSY', 0)
    engines()
    notes = optimize(model, EXAMPLE, choices=tmp_path / 'choices.json').notes
    assert notes == [check.MEASURED_BUSY] and not (tmp_path / 'choices.json').exists()


def test_default_choices() -> None:
    assert engine_choices.default_file().parts[-4:] == ('xception_hub', 'optimize', 'default', 'engines.json')


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('factor', [1.001, math.nan])
def test_wrong_engine(factor: float, model: Xception, engines: Callable[..., None], tmp_path: Path) -> None:
    engines(wrong=wrong(factor))
    with pytest.raises(OptimizeError, match='wrong.*4 photos.*1e-04'):
        optimize(model, EXAMPLE, 'wrong')
    engines(pytorch=wrong(factor))
    with pytest.raises(OptimizeError, match='No engine.*pytorch'):
        optimize(model, EXAMPLE, choices=tmp_path / 'choices.json')


@pytest.fixture
def cpu_with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor of the tests has."""
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx2': True, 'avx512_bf16': True}, raising=False)


class ReturnsDict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {'logits': x.mean((2, 3))}


def infinite() -> Xception:
    model = random_model(**SMALL)
    nn.init.constant_(model.head.fc.bias, math.inf)
    return model


BAD: list[tuple[dict[str, Any], str]] = [
    (dict(example=EXAMPLE[0]), r'\[3, 64, 75\].*\[batch, channels, height, width\]'),
    (dict(example=EXAMPLE[:0]), 'not images'),
    (dict(example=EXAMPLE[:, :1]), r'\[2, 1, 64, 75\]: ValueError: .*\[batch, 3,'),
    (dict(example=EXAMPLE.double()), r'torch.float64.*torch.float32.*\.float\(\)'),
    (dict(example=EXAMPLE.to('meta')), r"on meta.*example.to\('cpu'\)"),
    (dict(engine='tensorflow'), r"'tensorflow' .* 'cpu'.*'auto', 'pytorch'"),
    (dict(engine='cudagraphs'), "'cudagraphs' .* 'cpu'"),
    (dict(engine='onnxruntime', precision='bf16'), r"bf16 on cpu.*\[.*'openvino'.*\]"),
    (dict(precision='fp8'), "'fp8'.*'fp32', 'bf16'"),
    (dict(photos=['no.jpg']), 'no.jpg: there is no such file. Pass other photos'),
    (dict(model=random_model(**SMALL).train()), r'model.eval\(\)'),
    (dict(model=infinite()), '4 photos.*finite'),
    (dict(model=ReturnsDict().eval()), 'dict'),
    (
        dict(model=random_model(**SMALL, in_chans=2), example=EXAMPLE[:, :2], engine='pytorch', photos=['photo.jpg']),
        '3 channels.*2',
    ),
]


@pytest.mark.parametrize(('arguments', 'message'), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_arguments(arguments: dict[str, Any], message: str, model: Xception, cpu_with_bf16: None) -> None:
    with pytest.raises(OptimizeError, match=message):
        optimize(**{'model': model, 'example': EXAMPLE, **arguments})


def test_bf16_without_instructions(model: Xception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx2': True, 'avx512_bf16': False}, raising=False)
    assert lacks_bf16(torch.device('cpu'))
    with pytest.raises(OptimizeError, match="cpu.*bf16.*precision='fp32'"):
        optimize(model, EXAMPLE, precision='bf16')


def test_missing_package(model: Xception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, 'openvino', ENGINES['openvino']._replace(packages=('torch', 'no_such_package')))
    with pytest.raises(OptimizeError, match=r"openvino needs no_such_package: pip install 'xception-hub\[export\]'"):
        optimize(model, EXAMPLE, 'openvino')


# What to compare on, and what to do without torch.fx ------------------------------------------------------------------


def test_photos(model: Xception, checkpoint: Checkpoint) -> None:
    assert optimize(model, EXAMPLE, 'pytorch', photos=checkpoint.photos[:2]).checked_on == '2 photos'
    two = random_model(**SMALL, in_chans=2)  # nobody has photos of two channels
    assert optimize(two, EXAMPLE[:, :2], 'pytorch').checked_on == '2 images of the example'


class LooksAtValues(nn.Module):
    """torch.fx cannot trace it, and it does not run without values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_untraceable(engines: Callable[..., None], tmp_path: Path) -> None:
    """It runs as it is, and only at sizes at which it was compared."""
    engines()
    model = LooksAtValues().eval()
    optimized = optimize(model, EXAMPLE, choices=tmp_path / 'choices.json')
    assert optimized.notes[0].startswith('Batch normalization is not folded') and 'TraceError' in optimized.notes[0]
    assert torch.equal(optimized(-EXAMPLE), model(-EXAMPLE))
    with pytest.raises(OptimizeError, match=r'\[2, 3, 64, 75\].*\[1, 3, 64, 75\]'):
        optimized(EXAMPLE[:1])
