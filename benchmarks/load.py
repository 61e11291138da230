"""python benchmarks/load.py

Time and peak memory of importing and of loading pretrained weights from a warm cache, beside timm's `legacy_xception`.
Each measurement is a process of its own. The contenders take turns; medians are printed, with ratios to timm's loader
on its own file. The backbone is Keras' own, from the checkpoint of examples/port_a_keras_model.py. The classifier is
random, of the right size.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import timm
import torch
from cyclopts import App

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

from checkpoints import to_legacy
from port_a_keras_model import download
from timm.models._hub import save_for_hf

from xception_hub.porting.port import port

app = App(help=__doc__, version_flags=[])

# Python code that a process times; weights come from the folder in argv[1].
IMPORTS = {'import timm': 'import timm', 'import xception_hub': 'import xception_hub'}
LOADS = {
    'legacy_xception, its .pth': "model = timm.create_model('legacy_xception', pretrained=True)",
    'legacy_xception, safetensors': (
        "model = timm.create_model('legacy_xception', pretrained=True, "
        "pretrained_cfg_overlay=dict(file=sys.argv[1] + '/legacy.safetensors'))"
    ),
    'xception_paper': "model = timm.create_model('xception_paper', pretrained=True)",
    'local-dir:': "model = timm.create_model('local-dir:' + sys.argv[1] + '/directory', pretrained=True)",
}
CHILD = """
import json, sys, time
{prelude}
def memory(key):
    return next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith(key + ':'))
open('/proc/self/clear_refs', 'w').write('5')  # the peak starts anew
before, start = memory('VmRSS'), time.perf_counter()
model = None
{timed}
seconds, peak, private = time.perf_counter() - start, memory('VmHWM') - before, memory('RssAnon')
after = 0.
if model is not None:
    model.eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, 299, 299))
    after = time.perf_counter() - start
print(json.dumps(dict(seconds=seconds, peak=peak, private=private, after=after)))
"""


def prepare(folder: Path) -> dict[str, str]:
    """Fills the caches of the Hub and of torch as a first use does.

    Returns:
        The environment of a process that uses these caches.
    """
    ported = port(download().model).tensors
    backbone = {name: tensor for name, tensor in ported.items() if not name.startswith('head.')}
    classifier = {'head.fc.weight': torch.randn(1000, 2048) / 45, 'head.fc.bias': torch.zeros(1000)}
    tensors = to_legacy({**backbone, **classifier})
    cfg = timm.get_pretrained_cfg('xception_paper')
    repository, revision = cfg.hf_hub_id.split('@')
    snapshot = folder / 'hf/hub' / f'models--{repository.replace("/", "--")}' / 'snapshots' / revision
    checkpoints = folder / 'torch/hub/checkpoints'
    for directory in (snapshot, checkpoints):
        directory.mkdir(parents=True)
    safetensors.torch.save_file(tensors, snapshot / 'model.safetensors')
    safetensors.torch.save_file(tensors, folder / 'legacy.safetensors')
    model = timm.create_model('xception_paper')
    model.load_state_dict({**backbone, **classifier})
    save_for_hf(model, str(folder / 'directory'))
    torch.save(tensors, checkpoints / Path(timm.get_pretrained_cfg('legacy_xception').url).name)
    return dict(
        os.environ,
        HF_HOME=str(folder / 'hf'),
        TORCH_HOME=str(folder / 'torch'),
        HF_HUB_OFFLINE='1',
        PYTHONPATH=str(ROOT),
        XCEPTION_HUB_REPO='',
    )


def measure(prelude: str, timed: str, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    code = CHILD.format(prelude=prelude, timed=timed)
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, str(folder)], env=environment, check=True, capture_output=True
    )
    return json.loads(result.stdout)


@app.default
def main(repeats: int = 7) -> None:
    """Measures time and memory; needs Linux, which reports peak memory.

    Args:
        repeats: Number of processes for each contender, after one that is not counted. With 0 that one is all there is.
    """
    imports: dict[str, list[dict[str, float]]] = {name: [] for name in IMPORTS}
    loads: dict[str, list[dict[str, float]]] = {name: [] for name in LOADS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = prepare(folder)
        for _ in range(repeats + 1):
            for name, code in IMPORTS.items():
                imports[name].append(measure('import os', code, folder, environment))
            for name, code in LOADS.items():
                loads[name].append(measure('import torch, timm, xception_hub', code, folder, environment))
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, timm {timm.__version__}, '
        f'medians of {repeats} processes\n'
    )
    print(f'{"":30}{"seconds":>9}{"ratio":>7}{"peak MB":>9}{"ratio":>7}{"private MB":>12}{"s to first logits":>19}')
    for group in (imports, loads):
        first: dict[str, float] = {}
        for name, runs in group.items():
            median = {key: statistics.median(run[key] for run in runs[1:] or runs) for key in runs[0]}
            first = first or median
            logits = f'{median["after"]:19.2f}' if median['after'] else ''
            print(
                f'{name:30}{median["seconds"]:9.3f}{median["seconds"] / first["seconds"]:7.2f}{median["peak"]:9.0f}'
                f'{median["peak"] / first["peak"]:7.2f}{median["private"]:12.0f}{logits}'
            )
    print(
        '\npeak: resident memory above that of the imports, mapped pages of the weight file included, which the '
        'system\ntakes back when it needs to. private: resident memory that it cannot take back, imports included.'
    )


if __name__ == '__main__':
    app()
