"""xception-hub export: what each runtime makes of a file, and that nothing is kept which is not the model."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import call
from conftest import ROOT
from patience import patience
from random_model import images, random_model
from small_images import odd_images, save_pieces
from timm.models import register_model
from torch import Tensor

from xception_hub import Xception
from xception_hub.cli import main
from xception_hub.directory.write import write_model
from xception_hub.errors import DataError, DirectoryError, ExportError, ImageError, SettingsError
from xception_hub.inference import check, preprocess
from xception_hub.inference.export import described, export
from xception_hub.inference.exporters import FORMATS
from xception_hub.inference.snippets import snippet
from xception_hub.models.build import Transforms

SIZES = [(71, 71), (72, 96), (98, 81)]  # the smallest, square, even, even and odd
FLOAT32 = dict(rtol=1e-4, atol=1e-5)
BFLOAT16_ERROR, INT8_ERROR = 0.05, 0.3  # relative L2 of the logits; measured: 0.012 and 0.07
CLASS_NAMES = ['cup', 'fork', 'glass', 'knife']
ALONE = """
import sys

sys.modules['torch'] = sys.modules['timm'] = sys.modules['xception_hub'] = None  # an import of them is an error
exec(open('snippet.py').read())
print([float(value) for value in outputs[0][0]])
"""


def save(folder: Path, model: Xception, size: int = 71) -> Path:
    """A directory as finetune writes it, with images that are resized and cropped."""
    folder.mkdir()
    cfg: dict[str, Any] = dict(input_size=(3, size, size), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    write_model(
        folder,
        model,
        dict(label_names=CLASS_NAMES, pretrained_cfg=dict(tag=None)),
        {},
        dict(cfg, interpolation='bilinear', crop_pct=0.875, crop_mode='center'),
    )
    return folder


@pytest.fixture(scope='module')
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('export')
    save(folder / 'tiny', random_model(num_classes=4, width_multiplier=0.25))
    save_pieces(folder / 'photos', 12, 100)
    save_pieces(folder / 'few', 3)
    (folder / 'empty').mkdir()
    return folder


def model_of(folder: Path) -> Xception:
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def run_alone(exported: Path, photo: Path, model: Xception, bound: float) -> None:
    """The code of the page beside the file prints the class that the model names, without torch."""
    code = (exported / 'README.md').read_text().split('```python\n')[1].split('```')[0]
    (exported / 'snippet.py').write_text(code.replace('photo.jpg', str(photo)))
    result = subprocess.run([sys.executable, '-c', ALONE], cwd=exported, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    label, logits = result.stdout.splitlines()[-2:]
    with torch.no_grad():
        transforms = Transforms(model)
        expected = model(transforms.evaluation()(transforms.open(photo))[None])[0]
    assert (torch.tensor(json.loads(logits)) - expected).norm() <= bound * expected.norm()
    assert label == CLASS_NAMES[torch.tensor(json.loads(logits)).argmax()]


def assert_equal_at_all_sizes(run: Callable[[Tensor], Any], model: Xception) -> None:
    with torch.no_grad():
        for size in SIZES:
            for batch in (1, 3):
                x = images(*size, batch=batch)
                features = model.forward_head(model.forward_features(x), pre_logits=True)
                torch.testing.assert_close(run(x), [model(x), features], **FLOAT32)


@pytest.fixture(scope='module')
def in_onnx(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    out = tmp_path_factory.mktemp('onnx') / 'out'
    result = call(main, 'export', tiny / 'tiny', '--format', 'onnx', '-o', out, '--images', tiny / 'photos')
    assert result.returncode == 0, result.stderr
    assert 'On 12 photos of' in result.stdout and 'the class is the same for 100.0%' in result.stdout
    assert [path.name for path in out.parent.iterdir()] == ['out']
    return out


def test_onnx(in_onnx: Path, tiny: Path) -> None:
    """The file takes any batch, height and width, knows how its images are prepared, and needs no torch."""
    import onnx

    report = json.loads((in_onnx / 'export.json').read_text())
    assert report['comparison']['difference'] < 1e-5
    assert report['free_axes'] == ['batch', 'height', 'width'] and report['megabytes'] > 1
    assert {*report['seconds_per_image']} == {'eager', 'exported'}
    stored = onnx.load(in_onnx / 'model.onnx')
    (told,) = (json.loads(entry.value) for entry in stored.metadata_props if entry.key == 'xception_hub')
    assert told['class_names'] == CLASS_NAMES and told['preprocessing'] == report['preprocessing']
    assert [axis.dim_param or axis.dim_value for axis in stored.graph.input[0].type.tensor_type.shape.dim] == [
        'batch', 3, 'height', 'width',
    ]  # fmt: skip
    assert {output.type.tensor_type.shape.dim[0].dim_param for output in stored.graph.output} == {'batch'}
    sizes = {size.dim_param for value in stored.graph.value_info for size in value.type.tensor_type.shape.dim}
    assert {*re.findall('[a-z]+[0-9]*', ' '.join(sizes))} == {'batch', 'height', 'width'}
    assert b'site-packages' not in (in_onnx / 'model.onnx').read_bytes()
    model = model_of(tiny / 'tiny')
    assert_equal_at_all_sizes(FORMATS['onnx'].load(in_onnx / 'model.onnx', 'fp32'), model)
    run_alone(in_onnx, tiny / 'photos' / '000.png', model, 1e-5)


def test_grey_images(tiny: Path, tmp_path: Path) -> None:
    """The code for a model of images of 12 bits prepares them as the model's training does."""
    model = model_of(tiny / 'tiny')
    model.grey_maximum = 4095  # type: ignore[assignment]
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'grey.png').write_bytes(odd_images()['12 bits'])
    export(str(tiny / 'tiny'), tmp_path / 'out', 'onnx', images=tmp_path / 'photos', grey_maximum=4095)
    run_alone(tmp_path / 'out', tmp_path / 'photos' / 'grey.png', model, 1e-5)


@pytest.mark.parametrize('grey_maximum', [None, 4095])
@pytest.mark.parametrize(
    'config',
    [
        dict(crop_mode='squash', crop_pct=1.0, interpolation='nearest'),
        dict(crop_mode='squash', crop_pct=0.9, interpolation='bicubic', input_size=(3, 90, 61)),
        dict(crop_mode='center', crop_pct=0.9, interpolation='bilinear', input_size=(3, 90, 90)),
    ],
    ids=['keras', 'squash', 'center'],
)
def test_images_are_prepared_alike(config: dict[str, Any], grey_maximum: int | None) -> None:
    """Pixels equal those of the model's own transform, and what it refuses is refused."""
    model = timm.create_model('test_resnet')
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': (0.5, 0.4, 0.3), 'std': (0.2, 0.3, 0.4), **config}
    model.grey_maximum = grey_maximum
    transforms = Transforms(model)
    report = json.loads(json.dumps(described(model, 'test_resnet', transforms, 'onnx', 'fp32')))
    exported: dict[str, Any] = {}
    exec(preprocess.code(), exported)
    refused = []
    for name, image in odd_images().items():
        try:
            expected = transforms.evaluation()(transforms.open(image))[None].numpy()
        except ImageError:
            refused.append(name)
            with pytest.raises(exported['ImageError']) as raised:
                exported['prepare'](image, report)
            assert '--' not in str(raised.value)
            continue
        found = exported['prepare'](image, report)
        assert found.dtype == np.float32 and found.shape == expected.shape, name
        assert np.abs(found - expected).max() < 1e-6, name
    bits = ['16 bits', '32 bits'] if grey_maximum else ['16 bits, dark', '12 bits']
    assert refused == [*bits, 'NaN', 'truncated', 'text']


@pytest.mark.parametrize(
    'config', [dict(crop_mode='border'), dict(crop_pct=1.25), dict(crop_mode='center', input_size=(3, 90, 61))]
)
def test_unknown_preparation(config: dict[str, Any]) -> None:
    """The page has no code instead of code that prepares otherwise."""
    model = timm.create_model('test_resnet')
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    assert snippet(described(model, 'test_resnet', Transforms(model), 'onnx', 'fp32')) is None


def test_busy_machine(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed has a note wherever it is written."""
    monkeypatch.setattr(check, 'BUSY', 0)
    monkeypatch.setattr(check, 'SECONDS', 0)
    result = call(main, 'export', tiny / 'tiny', '--format', 'torch-export', '-o', tmp_path / 'out')
    assert result.stdout.count(check.MEASURED_BUSY) == 1
    assert check.MEASURED_BUSY in (tmp_path / 'out' / 'README.md').read_text()
    assert check.MEASURED_BUSY in json.loads((tmp_path / 'out' / 'export.json').read_text())['notes']


@pytest.mark.slow
@pytest.mark.needs('nncf', 'openvino')
@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_int8(format: str, tiny: Path, tmp_path: Path) -> None:
    """A damaged photo of the calibration is left aside by its name; an earlier export is replaced."""
    photos = save_pieces(tmp_path / 'photos', 12, 100)
    (tmp_path / 'photos' / 'damaged.png').write_bytes(photos[0].read_bytes()[:300])
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'export.json').write_text('{}')
    arguments = ['--format', format, '--precision', 'int8', '--calibration', tmp_path / 'photos']
    result = call(main, 'export', tiny / 'tiny', *arguments, '-o', tmp_path / 'out')
    assert result.returncode == 0, result.stderr
    assert f'Left out: {tmp_path / "photos" / "damaged.png"}: damaged' in result.stderr
    report = json.loads((tmp_path / 'out' / 'export.json').read_text())
    assert 0.97 < report['comparison']['feature_cosine'] < 0.99999
    weights = sum(parameter.numel() for parameter in model_of(tiny / 'tiny').parameters())
    assert report['megabytes'] < 2.5 * weights / 1e6
    run_alone(tmp_path / 'out', photos[0], model_of(tiny / 'tiny'), INT8_ERROR)


@pytest.mark.slow
@pytest.mark.needs('openvino')
def test_openvino(tiny: Path, tmp_path: Path) -> None:
    """A file in float32 is computed in float32, also where OpenVINO alone would choose bf16; and in bf16 on request."""
    import openvino

    model = model_of(tiny / 'tiny')
    export(str(tiny / 'tiny'), tmp_path / 'out', 'openvino')
    assert_equal_at_all_sizes(FORMATS['openvino'].load(tmp_path / 'out' / 'model.xml', 'fp32'), model)
    run_alone(tmp_path / 'out', tiny / 'photos' / '000.png', model, 1e-5)
    read = openvino.Core().read_model(tmp_path / 'out' / 'model.xml')
    assert json.loads(read.get_rt_info('xception_hub').astype(str))['class_names'] == CLASS_NAMES
    logits = FORMATS['openvino'].load(tmp_path / 'out' / 'model.xml', 'bf16')(images(71, 71))[0]
    assert (logits - model(images(71, 71))).norm() < BFLOAT16_ERROR * model(images(71, 71)).norm()


@pytest.mark.slow
def test_torch_export_in_bf16(tiny: Path, tmp_path: Path) -> None:
    report = export(str(tiny / 'tiny'), tmp_path / 'out', 'torch-export', 'bf16')
    assert 1e-3 < report['comparison']['difference'] < BFLOAT16_ERROR
    half = export(str(tiny / 'tiny'), tmp_path / 'whole', 'torch-export')['megabytes']
    assert report['megabytes'] < 0.7 * half


@pytest.mark.slow
def test_a_head_of_one_size(tmp_path: Path) -> None:
    """Its file has that size, and says so."""
    model = random_model(num_classes=4, width_multiplier=0.25, head_layers=[{'flatten': [3, 3]}, {'fc': 8}])
    report = export(str(save(tmp_path / 'model', model)), tmp_path / 'out', 'torch-export')
    assert report['free_axes'] == ['batch']
    assert 'Sizes that are free: batch;' in (tmp_path / 'out' / 'README.md').read_text()
    assert report['comparison']['difference'] < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')  # within ExecuTorch
def test_another_model_in_executorch(tmp_path: Path) -> None:
    """One of timm's own."""
    pytest.importorskip('executorch')
    report = export('test_resnet', tmp_path / 'out', 'executorch', image_size=64)
    assert report['comparison']['difference'] < 1e-4 and report['free_axes'] == []


@pytest.mark.slow
def test_wrong_at_other_sizes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some compilers are: the file gets the size of the example."""
    row = FORMATS['torch-export']

    def load(path: Path, precision: str) -> Callable[[Tensor], Any]:
        run = row.load(path, precision)
        return lambda x: [y * (1 if x.shape[2] == 71 else 2) for y in run(x)]

    monkeypatch.setitem(FORMATS, 'torch-export', row._replace(load=load))
    assert export(str(tiny / 'tiny'), tmp_path / 'out', 'torch-export')['free_axes'] == ['batch']


# What is refused -----------------------------------------------------------------------------------------------------


NNCF = pytest.mark.needs('nncf')


@pytest.mark.parametrize(
    ('format', 'options', 'error', 'said'),
    [
        ('tflite', {}, SettingsError, "no format 'tflite': it is one of onnx, openvino"),
        ('onnx', dict(precision='bf16'), SettingsError, 'onnx has no bf16, only fp32, int8. Formats with bf16: open'),
        pytest.param('onnx', dict(precision='int8'), SettingsError, '--calibration', marks=NNCF),
        ('onnx', dict(calibration='photos'), SettingsError, '--calibration is for int8'),
        pytest.param('onnx', dict(precision='int8', calibration='empty'), DataError, '0 photos', marks=NNCF),
        pytest.param('onnx', dict(precision='int8', calibration='few'), DataError, '3 photos', marks=NNCF),
        ('onnx', dict(images='nowhere'), DataError, 'There is no folder'),
        ('onnx', dict(images='empty'), DataError, 'has 0 photos, but needs at least 1'),
    ],
)
def test_refused(
    format: str, options: dict[str, Any], error: type[Exception], said: str, tiny: Path, tmp_path: Path
) -> None:
    given = {name: tiny / value if name != 'precision' else value for name, value in options.items()}
    with pytest.raises(error) as raised:
        export(str(tiny / 'tiny'), tmp_path / 'out', format, **given)
    assert said in str(raised.value)
    assert not [*tmp_path.iterdir()]


def test_a_package_that_is_missing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'nncf', None)  # what Python takes for a module that cannot be imported
    with pytest.raises(SettingsError, match=r"needs nncf: pip install 'xception-hub\[export\]'"):
        export(str(tiny / 'tiny'), tmp_path / 'out', 'onnx', 'int8', calibration=tiny / 'photos')


def test_targets(tiny: Path, tmp_path: Path) -> None:
    """Something else is not replaced, and a place that cannot be written is said before the work begins."""
    (tmp_path / 'file').write_text('text')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'thesis.tex').write_text('text')
    for target, said in (('file', 'is a file'), ('other', 'files that are not'), ('file/out', 'cannot be written')):
        with pytest.raises(DirectoryError, match=said):
            export(str(tiny / 'tiny'), tmp_path / target, 'onnx')
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['file', 'other', 'thesis.tex']


@torch.fx.wrap
def doubled_when_exported(x: Tensor) -> Tensor:
    return 2 * x if torch.compiler.is_compiling() else x


class Doubled(Xception):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return doubled_when_exported(super().forward_head(x, pre_logits=pre_logits))


class WithoutOperator(Xception):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x) + torch.linalg.eigvalsh(x[:, :, :3, :3]).sum()


def create(cls: type[Xception]) -> Xception:
    model = cls(num_classes=4, width_multiplier=0.25)
    model.pretrained_cfg = dict(input_size=(3, 71, 71), num_classes=4)
    return model


@register_model
def doubled_when_exported_xception(pretrained: bool = False, **kwargs: Any) -> Xception:
    return create(Doubled)


@register_model
def xception_of_eigenvalues(pretrained: bool = False, **kwargs: Any) -> Xception:
    return create(WithoutOperator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'format', 'said'),
    [
        (
            'doubled_when_exported_xception',
            'torch-export',
            'torch-export cannot be used: its outputs differ from those of the model. On 10 parts of a photo',
        ),
        ('xception_of_eigenvalues', 'onnx', 'onnx cannot run this model'),
    ],
)
def test_nothing_is_kept(name: str, format: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as raised:
        export(name, tmp_path / 'out', format)
    assert said in str(raised.value) and '--format' in str(raised.value)
    assert not [*tmp_path.iterdir()]


def process(tiny: Path, output: Path, before: Callable[[], Any]) -> subprocess.Popen:
    command = [sys.executable, '-m', 'xception_hub', 'export', tiny / 'tiny', '--format', 'torch-export', '-o', output]
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, preexec_fn=before)


@pytest.mark.slow
def test_full_disk(tiny: Path, tmp_path: Path) -> None:
    """Files of a megabyte at most; the model's has six."""
    started = process(tiny, tmp_path / 'out', lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))
    error = started.communicate()[1]
    assert started.returncode == 1 and 'Traceback' not in error
    assert error.splitlines()[-1].startswith('error: ') and not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_interrupted(tiny: Path, tmp_path: Path) -> None:
    # a shell that starts the tests in the background lets its children ignore Ctrl-C
    started = process(tiny, tmp_path / 'out', lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    end = time.monotonic() + patience(60)
    while not [*tmp_path.glob('.out*')] and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(started.pid, signal.SIGINT)
    error = started.communicate()[1]
    assert started.returncode not in (0, None) and 'Traceback' not in error
    assert not [*tmp_path.iterdir()]
