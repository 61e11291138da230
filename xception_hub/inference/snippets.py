"""The page beside an exported file: what it is, and code that runs it by its runtime alone."""

from collections.abc import Mapping
from string import Template
from typing import Any

from .preprocess import is_able

# imports, and lines that make `outputs`, whose first is that of the file, of `images` [1, 3, H, W] as a NumPy array
RUN = {
    'onnx': (
        'import onnxruntime\n',
        "session = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])\n"
        "outputs = session.run(None, {'images': images})\n",
    ),
    'openvino': (
        'import openvino\n',
        "model = openvino.compile_model('model.xml', 'CPU', {'INFERENCE_PRECISION_HINT': '$hint'})\n"
        'outputs = list(model(images).values())\n',
    ),
    'torch-export': (
        'import torch\n',
        "model = torch.export.load('model.pt2').module()\noutputs = model(torch.from_numpy(images))\n",
    ),
    'executorch': (
        'import torch\nfrom executorch.runtime import Runtime\n',
        "method = Runtime.get().load_program('model.pte').load_method('forward')\n"
        'outputs = method.execute([torch.from_numpy(images)])\n',
    ),
}
CODE = """\
import json

$imports
from preprocess import prepare

report = json.load(open('export.json', encoding='utf-8'))
images = prepare('photo.jpg', report)
$run
$answer
"""
ANSWERS = {
    'sigmoid': "print([name for name, logit in zip(report['class_names'], outputs[0][0]) if logit > 0])",
    'classes': "print(report['class_names'][outputs[0][0].argmax()])",
    'numbers': 'print(outputs[0])',
}


def snippet(report: Mapping[str, Any]) -> str | None:
    """Code that prints what the file makes of photo.jpg; None if images are prepared in a way that it does not know.

    Args:
        report: Content of export.json.
    """
    if not is_able(report['preprocessing']):
        return None
    imports, run = RUN[report['format']]
    kind = report['final_activation']
    has_classes = report['class_names'] and kind in ('sigmoid', 'softmax', 'linear', 'unknown')
    answer = 'numbers' if not has_classes else 'sigmoid' if kind == 'sigmoid' else 'classes'
    hint = 'bf16' if report['precision'] == 'bf16' else 'f32'
    return Template(CODE).substitute(
        imports=imports.rstrip(), run=Template(run.rstrip()).substitute(hint=hint), answer=ANSWERS[answer]
    )


def readme(report: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    code = snippet(report)
    free = report['free_axes']
    height, width = report['preprocessing']['input_size'][1:]
    lines = [
        f'# {report["model"]} for {report["format"]}, {report["precision"]}\n',
        f'`{report["file"]}` takes images [batch, 3, height, width] in float32 and returns '
        f'{" and ".join(report["outputs"])}. Sizes that are free: {", ".join(free) or "none"}; it was made with one '
        f'image of {height}x{width} pixels.',
        '`export.json` has the preparation of the images, the names of the classes and this report.'
        + (' `preprocess.py` prepares photos by it.\n' if code else '\n'),
        summary(report),
    ]
    if report['final_activation'] not in ('softmax', 'linear', 'unknown'):
        lines.append(f'\nThe logits are what {report["final_activation"]} is to be applied to.')
    if code:
        lines.append(f'\n```python\n{code}```')
    return '\n'.join(lines) + '\n'


def summary(report: Mapping[str, Any]) -> str:
    """The report in two lines, and a line for each note on it."""
    comparison, seconds = report['comparison'], report['seconds_per_image']
    same = comparison['top1_agreement']
    return '\n'.join([
        f'On {comparison["photos"]}, outputs differ by {comparison["difference"]:.1e} at most'
        + ('' if same is None else f', the class is the same for {same:.1%}')
        + f', the cosine of features is {comparison["feature_cosine"]:.5f} at least.',
        f'{report["megabytes"]:.1f} MB. {1000 * seconds["exported"]:.1f} ms an image, in PyTorch '
        f'{1000 * seconds["eager"]:.1f} ms ({report["machine"]}).',
        *report['notes'],
    ])  # fmt: skip
