"""How long a test waits for something: in units of this machine's speed, measured once when the tests start."""

import os
import subprocess
import sys
import time

VARIABLE = 'XCEPTION_HUB_TEST_UNIT'
QUIET = 2.0  # seconds that the probe takes on a quiet machine with two cores
PROBE = [sys.executable, '-c', 'import torch']


def measure() -> None:
    """Times the probe, and leaves the ratio to a quiet machine in the environment of this process and its children."""
    if VARIABLE not in os.environ:
        start = time.perf_counter()
        subprocess.run(PROBE, check=True)
        os.environ[VARIABLE] = f'{max(1.0, (time.perf_counter() - start) / QUIET):.2f}'


def patience(seconds: float) -> float:
    """What stands here for some seconds of a quiet machine."""
    return seconds * float(os.environ.get(VARIABLE, '1'))
