"""A file that is none of those that a door reads is called what it is, and the way out that is named was taken."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hub_server import HubServer
from torch import Tensor, nn

import xception_hub
from xception_hub.errors import CheckpointError, KerasFileError
from xception_hub.file_kinds import KERAS, KINDS, TORCH, foreign, kind_of
from xception_hub.porting.formats import open_source
from xception_hub.weights.checkpoint_files import read_checkpoint

# the code in messages leaves it to Python to close files
pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the files are, and where the code in messages runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope='module')
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


@pytest.fixture(scope='module')
def weights(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict()


def numpy(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in weights.items()}


def refused(path: Path | str) -> dict[str, str]:
    """What each door says of a file that neither reads."""
    with pytest.raises(CheckpointError) as by_torch:
        read_checkpoint(path)
    with pytest.raises(KerasFileError) as by_keras, open_source(Path(path)):
        pass
    assert str(path) in str(by_torch.value) and str(path) in str(by_keras.value)
    return {TORCH: str(by_torch.value), KERAS: str(by_keras.value)}


def run(code: str) -> None:
    """Code that an error names, with what it takes for granted."""
    import glob

    exec(code, dict(torch=torch, pickle=pickle, numpy=np, glob=glob, safetensors=safetensors))


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name.replace('__', '.').replace('SLASH', '/'), content)
    return path


# By their beginnings

CONTENTS: dict[str, tuple[str, bytes]] = {
    'an empty file': ('empty', b''),
    'an LFS pointer': ('pointer', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 91\n'),
    'a page': ('page', b'\n<!DOCTYPE html>\n<html>'),
    'an old page': ('page', b'<HTML><head><title>Sign in</title>'),
    'a page in XHTML': ('page', b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x">\n<html xmlns="x">'),
    'an error of a store': ('answer', b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
    'an error in JSON': ('answer', b'{"error": "Repository not found"}'),
    'a graph of ONNX': ('onnx', b'\x08\x08\x12\x07tf2onnx\x1a\x061.14.0:\xff'),
    'an ONNX without a producer': ('onnx', b'\x08\x07:\xda\x10\n\xca\x09'),
    'an IR of OpenVINO': ('openvino', b'<?xml version="1.0"?>\n<net name="x" version="11">'),
    'TensorFlow Lite': ('tflite', b'\x1c\0\0\0TFL3\x14\0'),
    'ExecuTorch': ('executorch', b'\x30\0\0\0ET12\x1c\0'),
    'ExecuTorch with an offset of 60': ('executorch', b'<\0\0\0ET12eh00'),
    'TensorFlow Lite with an offset of 60': ('tflite', b'<\0\0\0TFL3\x14\0'),
    'llama.cpp': ('gguf', b'GGUF\x03\0\0\0'),
    'tfjs': ('tfjs', b'{"format": "layers-model", "modelTopology": {}, "weightsManifest": []}'),
    'a graph model of tfjs': ('tfjs', b'{"format": "graph-model", "weightsManifest": []}'),
    'a config of Keras': ('keras config', b'{"class_name": "Functional", "config": {}}'),
    'a config of timm': ('timm config', b'{"architecture": "xception_paper", "num_classes": 2}'),
    'xz': ('xz', lzma.compress(b'x')),
    'bzip2': ('bzip2', bz2.compress(b'x')),
    'gzip': ('gzip', gzip.compress(b'x')),
    '7-Zip': ('7z', b"7z\xbc\xaf'\x1c\0\x04"),
    'RAR': ('rar', b'Rar!\x1a\x07\0'),
    'Zstandard': ('zstd', b'\x28\xb5\x2f\xfd\x04'),
    'a photo': ('image', b'\xff\xd8\xff\xe0\0\x10JFIF'),
    'a pickle': ('pickle', pickle.dumps([1, 2])),
}


@pytest.mark.parametrize('kind', CONTENTS)
def test_content_decides(kind: str, folder: Path) -> None:
    """Whatever a file is called, both doors call it what it is."""
    expected, content = CONTENTS[kind]
    for name in ('model.pth', 'model.safetensors', 'model.h5', 'model.keras', 'model'):
        (folder / name).write_bytes(content)
        for text in refused(folder / name).values():
            assert KINDS[expected][0].partition('{')[0] in text


OF_A_DOOR: dict[str, tuple[str, Callable[[Path, dict[str, Tensor]], Any]]] = {
    'torch': (TORCH, lambda path, state: torch.save(state, path)),
    'torch before 1.6': (TORCH, lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False)),
    'safetensors': (TORCH, lambda path, state: safetensors.torch.save_file(state, path)),
    'HDF5': (KERAS, lambda path, state: path.write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(99))),
    'Keras in shards': (KERAS, lambda path, state: path.write_text('{"weight_map": {"/layers/conv2d/vars": "0.h5"}}')),
    'Keras': (KERAS, lambda path, state: zipped(path, metadata__json=b'{}', config__json=b'{}')),
}


@pytest.mark.parametrize('name', ['model.pth', 'model.safetensors', 'model.h5', 'model.keras', 'model.bin'])
@pytest.mark.parametrize('kind', OF_A_DOOR)
def test_the_other_door(kind: str, name: str, folder: Path, weights: dict[str, Tensor]) -> None:
    """It reads what it is for, and names the other for the rest."""
    door, write = OF_A_DOOR[kind]
    write(folder / name, weights)
    assert foreign(folder / name, door) == ''
    other = foreign(folder / name, KERAS if door == TORCH else TORCH)
    command = re.search(
        r'xception-hub convert (.*) -o DIR' if door == KERAS else r'from_checkpoint\((.*?)\) reads', other
    )
    assert command and command[1].strip("'") == str(folder / name)
    if door == TORCH and name != 'model.safetensors':
        assert read_checkpoint(eval(command[1])).tensors.keys() == weights.keys()


@pytest.mark.parametrize(
    'bytes_of_header', [ord('<'), int.from_bytes(b'<a', 'little'), int.from_bytes(b' {', 'little')]
)
def test_safetensors_with_any_size(bytes_of_header: int, folder: Path) -> None:
    """The size of the header, which comes first, may look like the beginning of a page or of JSON."""
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(bytes_of_header)
    (folder / 'model').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
    assert foreign(folder / 'model', TORCH) == ''
    assert [*read_checkpoint(folder / 'model').tensors] == ['w']


def test_what_a_conversion_wrote_loads(converted: Path) -> None:
    """The way from a Keras file: `xception-hub convert FILE -o DIR`, then the directory."""
    assert xception_hub.from_checkpoint(converted).num_classes == 6


@pytest.mark.parametrize('content', [b'text', bytes(1000), b'PK\x03\x04', b'\x08\x00', b'{', b'{"a": 1}', b'[1]'])
def test_nobody_knows(content: bytes, folder: Path) -> None:
    """The doors say by themselves that they cannot read it."""
    (folder / 'model.bin').write_bytes(content)
    assert kind_of(folder / 'model.bin') == ''
    refused(folder / 'model.bin')


def test_what_is_no_file(folder: Path) -> None:
    """A pipe, which would never end, and nothing at all."""
    os.mkfifo(folder / 'pipe')
    for name in ('pipe', 'nothing'):
        assert kind_of(folder / name) == ''
        with pytest.raises(CheckpointError, match='no file'):
            read_checkpoint(folder / name)


def test_a_list_of_members_without_end(folder: Path) -> None:
    with zipfile.ZipFile(folder / 'model.zip', 'w') as archive:
        for i in range(40_000):
            archive.writestr(f'{i:060}.pth', b'')
    assert kind_of(folder / 'model.zip') == ''


# The ways out, taken


def test_pointer(folder: Path, hub: HubServer) -> None:
    (folder / 'model.safetensors').write_bytes(CONTENTS['an LFS pointer'][1])
    command = re.search(r'(hf download .*?)\.$', refused(folder / 'model.safetensors')[TORCH])
    assert command
    words = shlex.split(command[1].replace('ORG/NAME', 'smp-hub/xception.imagenet'))
    words[0] = str(Path(sys.executable).with_name('hf'))
    subprocess.run([*words, '--local-dir', folder], check=True, capture_output=True)
    assert len(read_checkpoint(folder / 'model.safetensors').tensors) > 200


def test_page(folder: Path, hub: HubServer) -> None:
    (folder / 'model.pth').write_bytes(CONTENTS['a page'][1])
    assert '/resolve/' in refused(folder / 'model.pth')[TORCH]
    torch.hub.download_url_to_file(
        f'{hub.url}/smp-hub/xception.imagenet/resolve/main/model.safetensors', str(folder / 'model.pth'), progress=False
    )
    assert read_checkpoint(folder / 'model.pth').tensors


def way(text: str, beginning: str = '') -> str:
    """The code in a message."""
    found = re.search(rf'{beginning}(torch\.save\(.*\))\. Then load weights\.pth', text)
    assert found, text
    return found[1]


def test_torchscript(folder: Path, network: nn.Module, weights: dict[str, Tensor]) -> None:
    torch.jit.script(network).save(str(folder / 'model.pt'))
    run(way(refused(folder / 'model.pt')[TORCH]))
    assert read_checkpoint(folder / 'weights.pth').tensors.keys() == weights.keys()


def test_torch_export(folder: Path, network: nn.Module, weights: dict[str, Tensor]) -> None:
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), folder / 'model.pt2')
    run(way(refused(folder / 'model.pt2')[TORCH]))
    read = read_checkpoint(folder / 'weights.pth').tensors
    assert all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('by_dynamo', [True, False])
def test_onnx(by_dynamo: bool, folder: Path, network: nn.Module) -> None:
    runtime = pytest.importorskip('onnxruntime')
    torch.onnx.export(network, (torch.zeros(1, 3, 8, 8),), str(folder / 'model.onnx'), dynamo=by_dynamo, verbose=False)
    code = re.search(r'as it is: (.*)\.$', refused(folder / 'model.onnx')[TORCH])
    assert code and eval(code[1], dict(onnxruntime=runtime)).get_inputs()


def test_openvino(folder: Path, network: nn.Module) -> None:
    openvino = pytest.importorskip('openvino')
    model = openvino.convert_model(network, example_input=torch.zeros(1, 3, 8, 8))
    openvino.save_model(model, folder / 'model.xml')
    for name in ('model.xml', 'model.bin'):
        code = re.search(r'as it is: (.*)\.$', refused(folder / name)[TORCH])
        assert code and eval(code[1], dict(openvino=openvino))


@pytest.mark.parametrize('kind', ['npz', 'pickle', 'joblib'])
def test_arrays_by_name(kind: str, folder: Path, weights: dict[str, Tensor]) -> None:
    path = folder / f'model.{kind}'
    if kind == 'npz':
        np.savez(path, **numpy(weights))
    elif kind == 'pickle':
        path.write_bytes(pickle.dumps(numpy(weights)))
    else:
        pytest.importorskip('joblib').dump(numpy(weights), path)
    code = way(refused(path)[KERAS])
    run(f'import joblib; {code}' if kind == 'joblib' else code)
    read = read_checkpoint(folder / 'weights.pth').tensors
    assert all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize('kind', ['npz', 'npy', 'pickle', 'joblib'])
def test_get_weights(kind: str, folder: Path) -> None:
    """The Keras model as it was takes them, and is a file that the door of Keras opens."""
    import keras

    def built() -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()])

    values, model, path = [array + 0.5 for array in built().get_weights()], built(), folder / f'weights.{kind}'
    if kind == 'npz':
        np.savez(path, *values)
    elif kind == 'npy':
        np.save(path, np.array([*values, None], dtype=object)[:-1])
    elif kind == 'pickle':
        path.write_bytes(pickle.dumps(values))
    else:
        pytest.importorskip('joblib').dump(values, path)
    texts = refused(path)
    code = re.search(r'Then: (.*\))\. Convert model\.keras', texts[KERAS])
    assert code and texts[TORCH] == texts[KERAS]
    exec(f'import joblib; {code[1]}', dict(model=model, numpy=np, pickle=pickle))
    assert all(np.array_equal(found, value) for found, value in zip(model.get_weights(), values))
    with open_source(folder / 'model.keras') as opened:
        assert opened.config


def test_a_pickle_of_tensors(folder: Path, weights: dict[str, Tensor]) -> None:
    (folder / 'model.pkl').write_bytes(pickle.dumps(weights))
    run(way(refused(folder / 'model.pkl')[TORCH]))
    assert read_checkpoint(folder / 'weights.pth').tensors.keys() == weights.keys()


@pytest.mark.parametrize('suffix', ['safetensors', 'bin'])
def test_shards(suffix: str, folder: Path, weights: dict[str, Tensor]) -> None:
    """A shard, the index, and the folder: each names how the shards become one file."""
    stem = 'model' if suffix == 'safetensors' else 'pytorch_model'
    parts = [f'{stem}-0000{i}-of-00002.{suffix}' for i in (1, 2)]
    names = list(weights)
    for i, part in enumerate(parts):
        tensors = {name: weights[name] for name in names[i::2]}
        save = safetensors.torch.save_file if suffix == 'safetensors' else torch.save
        save(tensors, folder / part)
    index = dict(metadata={}, weight_map={name: parts[i % 2] for i, name in enumerate(names)})
    (folder / f'{stem}.{suffix}.index.json').write_text(json.dumps(index))
    for path in (folder / parts[0], folder / f'{stem}.{suffix}.index.json', folder):
        code = re.search(r'Join them: (.*)\. Then load (.*)\.$', foreign(path, TORCH))
        assert code
        run(code[1].replace('; ', '\n'))
        read = read_checkpoint(eval(code[2])).tensors
        assert all(torch.equal(read[name], weights[name]) for name in weights)
        eval(f'__import__("os").remove({code[2]})')
    refused(folder / parts[1])


def test_one_shard_of_one_is_the_whole(folder: Path, weights: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(weights, folder / 'model-00001-of-00001.safetensors')
    assert read_checkpoint(folder / 'model-00001-of-00001.safetensors').tensors.keys() == weights.keys()


def tarred(path: Path) -> None:
    with tarfile.open(path, 'w') as archive:
        archive.add('model.pth')


PACKED: dict[str, Callable[[Path], Any]] = {
    'zip': lambda path: zipped(path, **{'model.pth': Path('model.pth').read_bytes()}),
    'tar': tarred,
    'gzip': lambda path: path.write_bytes(gzip.compress(Path('model.pth').read_bytes())),
    'xz': lambda path: path.write_bytes(lzma.compress(Path('model.pth').read_bytes())),
    'bzip2': lambda path: path.write_bytes(bz2.compress(Path('model.pth').read_bytes())),
}
SUFFIXES = {'gzip': 'gz', 'xz': 'xz', 'bzip2': 'bz2'}


@pytest.mark.parametrize('kind', PACKED)
def test_packed(kind: str, folder: Path, weights: dict[str, Tensor]) -> None:
    """The command in the message unpacks it."""
    torch.save(weights, 'model.pth')
    path = folder / f"it's packed.{SUFFIXES.get(kind, kind)}"
    PACKED[kind](path)
    os.remove('model.pth')
    text = refused(path)[TORCH]
    command = re.search(r'Unpack it: (.*?)\. Then name (.*)\.$', text)
    assert command
    os.makedirs('DIR', exist_ok=True)
    words = shlex.split(command[1])
    subprocess.run([sys.executable if words[0] == 'python' else words[0], *words[1:]], check=True)
    unpacked = dict(zip=Path(command[2]), tar=Path('model.pth')).get(kind, path.with_suffix(''))
    assert read_checkpoint(unpacked).tensors.keys() == weights.keys()


class Learner:
    """What fastai's export.pkl holds: an object with a network among its attributes."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.loss_func, self.dls, self.lr = model, nn.CrossEntropyLoss(), [object()], 0.1


@pytest.mark.parametrize('is_zip', [True, False])
def test_object_that_holds_a_network(
    is_zip: bool, folder: Path, network: nn.Module, weights: dict[str, Tensor]
) -> None:
    torch.save(Learner(network), folder / 'export.pkl', _use_new_zipfile_serialization=is_zip)
    read = read_checkpoint(folder / 'export.pkl')
    assert all(torch.equal(read.tensors[f'model.{name}'], weights[name]) for name in weights)
    assert read.modules['model.1'].kind.endswith('BatchNorm2d')


# Files of TensorFlow


def test_tensorflow(folder: Path) -> None:
    (folder / 'saved').mkdir()
    (folder / 'saved' / 'saved_model.pb').write_bytes(b'\x08\x01\x12\x05')
    zipped(folder / 'saved.zip', xSLASHsaved_model__pb=b'\x08\x01', xSLASHvariablesSLASHvariables__index=b'')
    for name in ('ckpt.index', 'ckpt.data-00000-of-00001'):
        (folder / name).write_bytes(b'\0\0')
    expected = {
        'saved': f"load_model('{folder}/saved')",
        'saved/saved_model.pb': f"load_model('{folder}/saved')",
        'saved.zip': "load_model('DIR/x')",
        'ckpt': f"load_weights('{folder}/ckpt')",
        'ckpt.index': f"load_weights('{folder}/ckpt')",
        'ckpt.data-00000-of-00001': f"load_weights('{folder}/ckpt')",
    }
    for name, code in expected.items():
        assert all(code in text for text in refused(folder / name).values()), name
    tfjs = folder / 'model.json'
    tfjs.write_bytes(CONTENTS['tfjs'][1])
    assert f'output_format=keras {tfjs} model.h5' in refused(tfjs)[KERAS]


@pytest.mark.tensorflow
@pytest.mark.filterwarnings('ignore')  # TensorFlow's own, of which there are many
def test_tensorflow_takes_the_ways_out(folder: Path) -> None:
    """Each message names code that makes a file of Keras with the same arrays."""
    tf_keras, tensorflow = pytest.importorskip('tf_keras'), pytest.importorskip('tensorflow')

    def built() -> Any:
        return tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3)])

    model = built()
    model.save('saved', save_format='tf')
    model.save_weights('checkpoints/x')
    subprocess.run([sys.executable, '-m', 'zipfile', '-c', 'saved.zip', 'saved'], check=True)
    for name in ('saved', 'saved.zip', 'checkpoints', 'checkpoints/x.index'):
        text = refused(Path(name))[KERAS]
        if unpack := re.search(r'Unpack it: python (.*?)\. Then', text):
            subprocess.run([sys.executable, *shlex.split(unpack[1])], check=True)
        code = re.search(r'(tf_keras\.models\.load_model|model\.load_weights)\(.*(?=\. Convert model\.h5)', text)
        assert code
        exec(code[0], dict(tf_keras=tf_keras, tf=tensorflow, model=built()))
        with open_source(folder / 'model.h5') as opened:
            assert opened.config
        loaded = tf_keras.models.load_model('model.h5').get_weights()
        assert all(np.array_equal(found, value) for found, value in zip(loaded, model.get_weights()))
        (folder / 'model.h5').unlink()
