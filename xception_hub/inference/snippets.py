"""The page beside an exported file: what it is, and code that runs it by its runtime alone."""

from collections.abc import Mapping
from string import Template
from typing import Any

NUMPY = 'import numpy as np\n'
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
RESIZE = {
    'squash': 'photo = photo.resize(($scaled_width, $scaled_height), Image.Resampling.$interpolation)\n',
    'center': (
        'scaled = $scaled_height  # pixels of the shorter side\n'
        'size = [int(scaled * side / min(photo.size)) for side in photo.size]\n'
        'photo = photo.resize(size, Image.Resampling.$interpolation)\n'
    ),
}
CROP = (
    'left, top = round((photo.width - $width) / 2), round((photo.height - $height) / 2)\n'
    'photo = photo.crop((left, top, left + $width, top + $height))\n'
)
COLOUR = "photo = ImageOps.exif_transpose(Image.open('photo.jpg')).convert('RGB')\n"
GREY = (  # of more than 8 bits
    "grey = np.asarray(Image.open('photo.png'), np.float64) * (255 / $grey_maximum)\n"
    "photo = Image.fromarray(grey.round().astype(np.uint8)).convert('RGB')\n"
)
PIXELS = (
    'pixels = (np.asarray(photo, np.float32) / 255 - np.float32($mean)) / np.float32($std)\n'
    'images = pixels.transpose(2, 0, 1)[None].astype(np.float32)\n'
)
ANSWER = {
    'sigmoid': 'print([name for name, logit in zip(names, outputs[0][0]) if logit > 0])\n',
    'classes': 'print(names[outputs[0][0].argmax()])\n',
}


def snippet(report: Mapping[str, Any]) -> str | None:
    """Code that prints what the file makes of photo.jpg; None if images are prepared in a way that it does not know.

    Args:
        report: Content of export.json.
    """
    data = report['preprocessing']
    _, height, width = data['input_size']
    scaled = [int(side // data['crop_pct']) for side in (height, width)]
    mode = data['crop_mode']
    if mode not in RESIZE or (mode == 'center' and height != width):
        return None
    grey = report.get('grey_maximum')
    imports, run = RUN[report['format']]
    kind = report['final_activation']
    names = report['class_names'] and kind in ('sigmoid', 'softmax', 'linear', 'unknown')
    code = ''.join([
        'import json\n\n' if names else '',
        NUMPY,
        imports,
        f'from PIL import Image{"" if grey else ", ImageOps"}\n\n',
        GREY if grey else COLOUR,
        RESIZE[mode],
        CROP if mode == 'center' or scaled != [height, width] else '',
        PIXELS,
        run,
        "names = json.load(open('export.json', encoding='utf-8'))['class_names']\n" if names else '',
        ANSWER['sigmoid' if kind == 'sigmoid' else 'classes'] if names else 'print(outputs[0])\n',
    ])  # fmt: skip
    return Template(code).substitute(
        hint='bf16' if report['precision'] == 'bf16' else 'f32', height=height, width=width, scaled_height=scaled[0],
        scaled_width=scaled[1], interpolation=data['interpolation'].upper(), mean=list(data['mean']),
        std=list(data['std']), grey_maximum=grey,
    )  # fmt: skip


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
        '`export.json` has the preparation of the images, the names of the classes and this report.\n',
        summary(report),
    ]
    if report['final_activation'] not in ('softmax', 'linear', 'unknown'):
        lines.append(f'\nThe logits are what {report["final_activation"]} is to be applied to.')
    if code:
        lines.append(f'\n```python\n{code}```')
    return '\n'.join(lines) + '\n'


def summary(report: Mapping[str, Any]) -> str:
    """The report in two lines."""
    comparison, seconds = report['comparison'], report['seconds_per_image']
    same = comparison['top1_agreement']
    return '\n'.join([
        f'On {comparison["photos"]}, outputs differ by {comparison["difference"]:.1e} at most'
        + ('' if same is None else f', the class is the same for {same:.1%}')
        + f', the cosine of features is {comparison["feature_cosine"]:.5f} at least.',
        f'{report["megabytes"]:.1f} MB. {1000 * seconds["exported"]:.1f} ms an image, in PyTorch '
        f'{1000 * seconds["eager"]:.1f} ms ({report["machine"]}).',
    ])  # fmt: skip
