"""python benchmarks/convert.py

Time and memory of converting the checkpoint of examples/port_a_keras_model.py (87 MB), with every proof that
`python -m conversion.convert` makes, and without Keras. Each run is a process of its own; medians are printed. The peak
is the memory on top of the imports. The imports are measured too.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from cyclopts import App

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

from port_a_keras_model import download

app = App(help=__doc__, version_flags=[])

CHILD = """
import json, sys, time
from pathlib import Path
sys.path[:0] = ['.', 'examples']
start = time.perf_counter()
from conversion import convert
from xception_hub.porting import keras_model, parity, port
from port_a_keras_model import CLASS_NAMES, PREPROCESSING
if sys.argv[3] == 'with Keras':
    keras_model.import_keras()
else:
    parity.keras_is_installed = lambda: False
imports = time.perf_counter() - start
def memory(key):
    return next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith(key + ':'))
open('/proc/self/clear_refs', 'w').write('5')  # the peak starts anew
before, start = memory('VmRSS'), time.perf_counter()
ported = port.port(sys.argv[1])
reading = time.perf_counter() - start
assert convert.convert(ported, Path(sys.argv[2]), PREPROCESSING, CLASS_NAMES).passed
total = time.perf_counter() - start
print(json.dumps(dict(imports=imports, reading=reading, total=total, before=before, peak=memory('VmHWM') - before)))
"""


@app.default
def main(repeats: int = 5) -> None:
    """Measures time and memory.

    Args:
        repeats: Number of processes for each row.
    """
    model = download().model
    print(f'{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {repeats} runs each')
    print(f'{"":16}{"imports":>10}{"reading":>10}{"all":>10}{"imports":>12}{"on top":>10}')
    for kind in ('with Keras', 'without Keras'):
        runs = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                output = subprocess.run(
                    [sys.executable, '-c', CHILD, str(model), f'{folder}/out', kind],
                    cwd=ROOT,
                    check=True,
                    text=True,
                    capture_output=True,
                ).stdout
            runs.append(json.loads(output.splitlines()[-1]))
        m = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f'{kind:16}{m["imports"]:8.1f} s{m["reading"]:8.1f} s{m["total"]:8.1f} s'
            f'{m["before"]:9.0f} MB{m["peak"]:7.0f} MB'
        )


if __name__ == '__main__':
    app()
