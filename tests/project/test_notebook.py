"""The notebook of the paper runs from top to bottom, in this process, as it stands; so does its translation."""

import json
import re
from typing import Any

from conftest import ROOT
from port_a_keras_model import Checkpoint

NOTEBOOK, CHINESE = (
    json.loads((ROOT / 'examples' / name).read_text('utf-8')) for name in ('the_paper.ipynb', 'the_paper.zh.ipynb')
)
CELLS = NOTEBOOK['cells']
MAGIC = '%'  # of a line for Jupyter alone
LABELS = {'思想。': 'Idea.', '练习。': 'Exercise.'}


def texts_of(notebook: dict[str, Any]) -> list[str]:
    """Of the markdown cells, in order."""
    return [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'markdown']


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


def test_translation() -> None:
    """Its code and outputs are the same, so one run is enough; its text has the same parts, code and links."""
    texts = iter(texts_of(NOTEBOOK))
    cells = [
        {**cell, 'source': next(texts).splitlines(True)} if cell['cell_type'] == 'markdown' else cell
        for cell in CHINESE['cells']
    ]
    assert {**CHINESE, 'cells': cells} == NOTEBOOK
    for text, expected in zip(texts_of(CHINESE), texts_of(NOTEBOOK)):
        assert re.search('[\u4e00-\u9fff]', text)
        assert [LABELS[label] for label in re.findall(r'\*\*(.*?)\*\*', text)] == re.findall(r'\*\*(.*?)\*\*', expected)
        for pattern in ('^#+ ', r'`.*?`', r'\]\((.*?)\)'):
            found, wanted = (re.findall(pattern, words, re.MULTILINE) for words in (text, expected))
            assert sorted(found) == sorted(wanted)
