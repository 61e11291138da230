"""What the C library keeps, measured in processes of their own."""

import ctypes
from pathlib import Path

import pytest
from forked import run_code

# 64 MB, written once in each round: pages that were given back are mapped anew
CODE = """
import resource
import torch
from xception_hub import allocator
allocator.keep_freed_memory() if KIND != 'default' else None
allocator.return_freed_memory() if KIND == 'return' else None
torch.ones(2 ** 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2 ** 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
rss = lambda: next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS'))
kept = rss()
allocator.release_freed_memory()
print(kept - rss())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'mallopt'), reason='needs glibc')
def test_keep_freed_memory(tmp_path: Path) -> None:
    """Freed pages are used again; `release_freed_memory` gives them back, and the last of two opposites holds."""
    found = {}
    for kind in ('keep', 'default', 'return'):
        status, text = run_code(CODE.replace('KIND', repr(kind)), tmp_path, tmp_path / kind)
        assert status == 0, text
        found[kind] = [int(line) for line in text.split()]
    pages = 2**26 // 4096
    assert found['keep'][0] <= 4 * pages < 7 * pages <= min(found['default'][0], found['return'][0])
    assert found['keep'][1] > 2**26 // 1024 * 0.9
