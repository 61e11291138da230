"""What a file or directory is, by its content, and how the network in it gets to where it can be read.

Two doors read files: `from_checkpoint` those of torch, `xception-hub convert` those of Keras. Each asks `foreign`.
"""

import glob
import io
import json
import pickletools
import re
import shlex
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import printable

TORCH, KERAS = 'from_checkpoint', 'convert'  # the doors

MAX_START = 4096  # bytes of a file that are looked at
MAX_JSON = 10_000_000  # bytes
MAX_MEMBERS = 2**21  # bytes of the list of an archive's members
MAX_PICKLE = 2**16  # bytes of a pickle that are looked at
MAX_LISTED = 3  # members of an archive that are named

HDF5, ZIP, PICKLE = b'\x89HDF\r\n\x1a\n', b'PK\x03\x04', b'\x80'  # how these files begin
LEGACY_TORCH = rb'\x80.\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.'  # torch.save before 1.6: its magic number, as a pickle
NETWORKS = re.compile(r'\.(safetensors|pth|pt|ckpt|bin|p|pkl|h5|hdf5|keras)$|saved_model\.pb$')  # names worth unpacking

RUNS = 'Load the checkpoint that it was exported from: an export is a fixed graph for a runtime. It runs as it is: '
SAVE = "In a process that trusts it: torch.save({}, 'weights.pth'). Then load weights.pth."
CONVERT = "Convert it: xception-hub convert {shell} -o DIR. xception_hub.from_checkpoint('DIR') then loads it."
REBUILD = 'In Keras, build the model as it was. Then: {set}; model.save("model.keras"). Convert model.keras.'

# name -> what it is, and the way out; see `FIELDS` for what stands in braces
KINDS = {
    # what a door reads
    'torch': ('is a file of torch', 'It needs no conversion: xception_hub.from_checkpoint({file}) reads it.'),
    'keras': ('is a file of Keras', CONVERT),
    # no file at all
    'empty': ('is empty', 'Download or copy it again.'),
    'pointer': (
        'is a pointer of Git LFS, a few lines of text in place of the file',
        'Run `git lfs pull` in the clone that it comes from, or download the file itself: hf download ORG/NAME {name}.',
    ),
    'page': (
        'is a web page',
        "Download the file itself: on the Hub its address has /resolve/ where a page's has /blob/, on GitHub /raw/.",
    ),
    'answer': ('is the answer of a server, not a file: {text}', 'Download the file again.'),
    # parts of a model
    'shard': ('is one of several shards, or their index', '{join}'),
    'timm config': ('is the config.json of a model', 'Name its directory, {folder}, or the weights in it.'),
    'keras config': (
        'is a config of Keras without weights',
        'Name these as the source: xception-hub convert WEIGHTS --config {shell} -o DIR.',
    ),
    'keras shards': ('is the index of Keras weights in shards', CONVERT),
    # other files of networks
    'torchscript': (
        'is a TorchScript archive, whose program is not run',
        SAVE.format('torch.jit.load({file}).state_dict()'),
    ),
    'torch.export': ('is a program of torch.export', SAVE.format('dict(torch.export.load({file}).state_dict)')),
    'onnx': ('is a model of ONNX', f'{RUNS}onnxruntime.InferenceSession({{file}}).'),
    'openvino': ('is a model of OpenVINO', f'{RUNS}openvino.Core().compile_model({{xml}}).'),
    'executorch': ('is a program of ExecuTorch', f'{RUNS}executorch.runtime.Runtime.get().load_program({{file}}).'),
    'tflite': ('is a model of TensorFlow Lite', f'{RUNS}ai_edge_litert.interpreter.Interpreter({{file}}).'),
    'coreml': ('is a model of Core ML, for a Mac', f'{RUNS}coremltools.models.MLModel({{file}}).'),
    'gguf': ('is a model of llama.cpp', 'No Xception is kept so. Look for another file.'),
    'saved model': (
        'is a SavedModel of TensorFlow',
        "In Python with tensorflow and tf_keras: tf_keras.models.load_model({folder}).save('model.h5'). Convert "
        'model.h5.',
    ),
    'frozen graph': ('is a graph of TensorFlow', 'Convert the Keras model that it was made of.'),
    'tensorflow checkpoint': (
        'is a checkpoint of TensorFlow, with arrays and no model',
        'In Python with tensorflow and tf_keras, build the model as it was. Then: '
        "model.load_weights({prefix}).expect_partial(); model.save('model.h5'). Convert model.h5.",
    ),
    'tfjs': (
        'is a model of TensorFlow.js',
        'With the package tensorflowjs, for a model that Keras made: tensorflowjs_converter '
        '--input_format=tfjs_layers_model --output_format=keras {shell} model.h5. Convert model.h5.',
    ),
    # arrays
    'npz': (
        'holds arrays of NumPy by name',
        'If the names are those of a torch model: torch.save({{name: torch.from_numpy(array) for name, array in '
        "numpy.load({file}).items()}}, 'weights.pth'). Then load weights.pth.",
    ),
    'npz of weights': (
        'holds arrays of NumPy without names, as of model.get_weights() in Keras',
        REBUILD.format(set='model.set_weights(list(numpy.load({file}).values()))'),
    ),
    'npy': (
        'holds one array of NumPy, or those of model.get_weights() in Keras',
        'If so, in a process that trusts it: '
        + REBUILD.format(set='model.set_weights(list(numpy.load({file}, allow_pickle=True)))'),
    ),
    'pickled weights': (
        'is a pickled list of NumPy arrays, as of model.get_weights() in Keras',
        'In a process that trusts it: ' + REBUILD.format(set='model.set_weights({load})'),
    ),
    'pickled arrays': (
        'is a pickle of NumPy arrays by name',
        'If the names are those of a torch model, in a process that trusts it: torch.save({{name: '
        "torch.from_numpy(array) for name, array in {load}.items()}}, 'weights.pth'). Then load weights.pth.",
    ),
    'pickle': ('is a pickle, but none that torch.save wrote', SAVE.format('{load}')),
    # archives
    'zip': ('is a zip archive', 'Unpack it: python -m zipfile -e {shell} DIR. Then name {members}.'),
    'zipped saved model': (
        'is a SavedModel of TensorFlow in a zip archive',
        'Unpack it: python -m zipfile -e {shell} DIR. Then in Python with tensorflow and tf_keras: '
        "tf_keras.models.load_model({model}).save('model.h5'). Convert model.h5.",
    ),
    'tar': ('is a tar archive', 'Unpack it: tar -xf {shell}. Then name the checkpoint in it.'),
    'gzip': ('is compressed by gzip', 'Unpack it: gzip -dk {shell}. Then name what comes out.'),
    'xz': ('is compressed by xz', 'Unpack it: xz -dk {shell}. Then name what comes out.'),
    'bzip2': ('is compressed by bzip2', 'Unpack it: bzip2 -dk {shell}. Then name what comes out.'),
    'zstd': ('is compressed by Zstandard', 'Unpack it: zstd -d {shell}. Then name what comes out.'),
    '7z': ('is a 7-Zip archive', 'Unpack it: 7z x {shell}. Then name the checkpoint in it.'),
    'rar': ('is a RAR archive', 'Unpack it: unrar x {shell}. Then name the checkpoint in it.'),
    'image': ('is an image', 'Name the file of the network.'),
}
READ = {TORCH: ('torch',), KERAS: ('keras', 'keras shards')}

# names that content alone does not tell
NAMES = {
    r'-\d{5}-of-(?!00001)\d{5}\.(safetensors|bin)$': 'shard',
    r'(^saved_model\.pb|^keras_metadata\.pb)$': 'saved model',
    r'\.mlmodel$': 'coreml',
    r'\.pb$': 'frozen graph',
}
FOLDERS = {
    'saved_model.pb': 'saved model',
    'model.weights.h5': 'keras',
    '*.index.json': 'shard',
    'Data/com.apple.CoreML': 'coreml',
}
# beginnings of files, in any case; binary ones first, since any letter may stand in their sizes
STARTS = {
    rb'\Z': 'empty',
    rb'version https://git-lfs': 'pointer',
    re.escape(HDF5): 'keras',
    LEGACY_TORCH: 'torch',
    rb'.{4}\0{4}\{': 'torch',  # safetensors
    rb'.{4}TFL3': 'tflite',
    rb'.{4}ET\d\d': 'executorch',
    rb'GGUF': 'gguf',
    rb'\x93NUMPY': 'npy',
    rb'\x1f\x8b': 'gzip',
    rb'\xfd7zXZ\0': 'xz',
    rb'BZh': 'bzip2',
    rb'\x28\xb5\x2f\xfd': 'zstd',
    rb"7z\xbc\xaf'\x1c": '7z',
    rb'Rar!': 'rar',
    rb'.{257}ustar': 'tar',
    rb'\xff\xd8\xff|\x89PNG|GIF8|RIFF.{4}WEBP': 'image',
    re.escape(ZIP): 'zip',
    PICKLE: 'pickle',
    rb'\s*<\?xml.{0,400}<net ': 'openvino',
    rb'\s*(<!doctype html|<html|<head|<\?xml.{0,4000}<html)': 'page',
    rb'\s*<[a-z!?]': 'answer',
    rb'\s*\{': 'json',
    rb'\x08[\x03-\x40](\x12.[\x20-\x7e]|[\x1a\x3a\x42])': 'onnx',  # no magic: the version, then the name of a program
}
# members of zip archives: what all of these patterns match
MEMBERS = {
    ('(^|/)saved_model.pb$',): 'zipped saved model',
    (r'^[^/]*/?data\.pkl$', r'^[^/]*/?(constants\.pkl|code/)'): 'torchscript',
    (r'^[^/]*/?data\.pkl$',): 'torch',
    (r'^[^/]*/?(archive_format|serialized_exported_program\.json)$',): 'torch.export',
    (r'^(model\.weights\.h5|metadata\.json)$',): 'keras',
}
# keys of an object in JSON
KEYS = {
    ('modelTopology',): 'tfjs',
    ('weightsManifest',): 'tfjs',
    ('weight_map',): 'shard',
    ('class_name', 'config'): 'keras config',
    ('architecture',): 'timm config',
    ('error',): 'answer',
}


class ArchiveFile(io.FileIO):
    """A zip archive's file that refuses a huge list of members, which zipfile would read as a whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_MEMBERS:
            raise ValueError(f'its list of members takes {size} bytes')
        return super().read(size)


def foreign(path: Path, door: str) -> str:
    """What a path leads to if it is not what a door reads, and the way out; '' if it is, or if nobody knows.

    Args:
        path: A file or directory, which need not exist.
        door: TORCH or KERAS.
    """
    kind = kind_of(path)
    if not kind or kind in READ[door]:
        return ''
    text = '. '.join(KINDS[kind])
    return text.format(**{name: value(path) for name, value in FIELDS.items() if f'{{{name}}}' in text})


def kind_of(path: Path) -> str:
    """One of `KINDS`; '' for what nobody knows, or is not there."""
    try:
        if (kind := _by_name(path)) or not path.is_file():  # a pipe would never end
            return kind
        with open(path, 'rb') as file:
            start = file.read(MAX_START)
        kind = next(
            (kind for pattern, kind in STARTS.items() if re.match(pattern, start, re.DOTALL | re.IGNORECASE)), ''
        )
        return READERS[kind](path) if kind in READERS else kind
    except Exception:  # a damaged archive or pickle raises errors of many types, and its door says what is wrong
        return ''


def _by_name(path: Path) -> str:
    """The kind that the names of a path, and of what lies beside it or in it, tell; '' for none."""
    if path.suffix == '.bin' and path.with_suffix('.xml').is_file():
        return 'openvino'
    if path.is_dir():
        kinds = (kind for pattern, kind in FOLDERS.items() if any(path.glob(pattern)))
    else:
        kinds = (kind for pattern, kind in NAMES.items() if path.is_file() and re.search(pattern, path.name))
    return next(kinds, 'tensorflow checkpoint' if _prefix(path) else '')


def _prefix(path: Path) -> str:
    """Code for a checkpoint of TensorFlow: of a directory, of one of its files, or of what is before their dots."""
    name = path.name.partition('.index')[0].partition('.data-0')[0]
    if path.is_dir():
        is_there = (path / 'checkpoint').is_file() or any(path.glob('*.index'))
        return f'tf.train.latest_checkpoint({str(path)!r})' if is_there else ''
    is_there = path.with_name(f'{name}.index').is_file() and not (path.is_file() and name == path.name)
    return repr(str(path.with_name(name))) if is_there else ''


def _joined(path: Path) -> str:
    """How shards become one file again."""
    path = next(path.glob('*.index.json'), path)  # of a directory
    module, load, save = ('safetensors.torch', 'load_file', 'save_file({}, {})')
    suffix, target = 'safetensors', 'model.safetensors'
    if '.bin' in path.name:
        module, load, save, suffix, target = 'torch', 'load', 'save({}, {})', 'bin', 'pytorch_model.bin'
    shards = f'{glob.escape(str(path.parent))}/*-of-*.{suffix}'
    tensors = f'{{name: tensor for file in glob.glob({shards!r}) for name, tensor in {module}.{load}(file).items()}}'
    return (
        f'Join them: import glob, {module}; {module}.{save.format(tensors, repr(str(path.with_name(target))))}. '
        f'Then load {str(path.with_name(target))!r}.'
    )


def _in_json(path: Path) -> str:
    content = json.loads(path.read_bytes()) if path.stat().st_size < MAX_JSON else {}
    kind = next((kind for keys, kind in KEYS.items() if all(key in content for key in keys)), '')
    is_keras = kind == 'shard' and any('.h5' in str(shard) for shard in content['weight_map'].values())
    return 'keras shards' if is_keras else kind


def _members(path: Path) -> list[str]:
    with ArchiveFile(path) as file, zipfile.ZipFile(file) as archive:
        return archive.namelist()


def _in_zip(path: Path) -> str:
    names = _members(path)
    for patterns, kind in MEMBERS.items():
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return kind
    if names and all(name.endswith('.npy') for name in names):
        return 'npz of weights' if all(re.fullmatch(r'arr_\d+\.npy', name) for name in names) else 'npz'
    return 'zip' if any(map(NETWORKS.search, names)) else ''


def _networks_in(path: Path) -> str:
    networks = [f'DIR/{printable(name)}' for name in _members(path) if NETWORKS.search(name)]
    return ' or '.join(networks[:MAX_LISTED])


def _saved_model_in(path: Path) -> str:
    name = next(name for name in _members(path) if name.endswith('saved_model.pb'))
    return repr(printable(f'DIR/{name.rpartition("/")[0]}'.rstrip('/')))


def _in_pickle(path: Path) -> str:
    first, packages = _named_in(path)
    if 'torch' in packages or not packages:
        return 'pickle'
    return {'EMPTY_LIST': 'pickled weights', 'EMPTY_DICT': 'pickled arrays'}.get(first, 'pickle')


def _load(path: Path) -> str:
    """Code that loads a pickle."""
    is_joblib = 'joblib' in _named_in(path)[1]
    return f'joblib.load({str(path)!r})' if is_joblib else f"pickle.load(open({str(path)!r}, 'rb'))"


def _named_in(path: Path) -> tuple[str, set[str]]:
    """The first operation of a pickle, and the packages among numpy, torch and joblib that it names."""
    operations, texts = [], []
    with suppress(ValueError), open(path, 'rb') as file:  # an array is longer than what is looked at
        for opcode, argument, _ in pickletools.genops(file.read(MAX_PICKLE)):
            operations.append(opcode.name)
            texts += [argument] if isinstance(argument, str) else []
    packages = {name for name in ('numpy', 'torch', 'joblib') if any(text.startswith(name) for text in texts)}
    return next((name for name in operations if name not in ('PROTO', 'FRAME')), ''), packages


def _beginning(path: Path) -> str:
    with open(path, 'rb') as file:
        return printable(file.read(MAX_START).decode('utf-8', 'replace'))


READERS: dict[str, Callable[[Path], str]] = {'json': _in_json, 'pickle': _in_pickle, 'zip': _in_zip}
FIELDS: dict[str, Callable[[Path], str]] = {  # what stands in braces in a way out -> its value for a path
    'file': lambda path: repr(str(path)),
    'folder': lambda path: repr(str(path if path.is_dir() else path.parent)),
    'shell': lambda path: shlex.quote(str(path)),
    'name': lambda path: path.name,
    'xml': lambda path: repr(str(path.with_suffix('.xml') if path.suffix == '.bin' else path)),
    'join': _joined,
    'load': _load,
    'members': _networks_in,
    'model': _saved_model_in,
    'prefix': _prefix,
    'text': _beginning,
}
