"""The notebook of the paper: its cells run from top to bottom, in this process, as they stand there."""

import json
import re

from conftest import ROOT
from port_a_keras_model import Checkpoint

CELLS = json.loads((ROOT / 'examples' / 'the_paper.ipynb').read_text('utf-8'))['cells']
MAGIC = '%'  # of a line for Jupyter alone


def test_cells_run(checkpoint: Checkpoint) -> None:
    """The assertions in them are the test."""
    names: dict[str, object] = {}
    for cell in CELLS:
        if cell['cell_type'] == 'code':
            exec(''.join(line for line in cell['source'] if not line.startswith(MAGIC)), names)
    assert len(names['ratios']) == 12 and len(names['centre']) == 13


def test_each_section_is_whole() -> None:
    """An idea, an assertion, and an exercise in each; what it shows is committed, without errors or paths."""
    text = ''.join(f'{"".join(cell["source"])}\n' for cell in CELLS)
    for section in text.split('\n## ')[1:]:
        assert all(
            re.search(part, section, re.MULTILINE) for part in (r'\*\*Idea\.\*\*', r'^assert ', r'\*\*Exercise\.\*\*')
        ), section
    outputs = [output for cell in CELLS for output in cell.get('outputs', [])]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 8
    assert not any(output.get('name') == 'stderr' or output['output_type'] == 'error' for output in outputs)
