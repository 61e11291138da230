"""python benchmarks/ablations.py RUNS --dataset DATASET

Runs `xception-hub ablations`; the code is in xception_hub/paper/ablations.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xception_hub.paper.ablations import app

if __name__ == '__main__':
    app()
