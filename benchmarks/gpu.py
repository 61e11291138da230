"""python benchmarks/gpu.py

Fine-tunes on a GPU as its users do: recipes x precisions x numbers of workers, each as a command of its own on the same
photos. Prints the images per second of the input and of the network apart. Then interrupts one of these commands, runs
it again, and compares the weights with those of the command that was not interrupted.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from cyclopts import App
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 10
SIDES = (500, 375)  # pixels, those of an ordinary photo of ImageNet

app = App(help=__doc__, version_flags=[])


def make_photos(folder: Path, count: int) -> None:
    """Photos in folders of classes: smooth noise, of a size on disk like that of real photos."""
    generator = np.random.default_rng(0)
    for number in range(count):
        small = generator.integers(0, 256, (SIDES[1] // 8, SIDES[0] // 8, 3), dtype=np.uint8)
        path = folder / f'class {number % CLASSES}' / f'{number}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize(SIDES, Image.Resampling.BICUBIC).save(path, quality=90)


def command(data: Path, output: Path, arguments: Sequence[str]) -> list[str]:
    names = ['--dataset', str(data), '--output', str(output), '--metric', 'loss', *arguments]
    return [sys.executable, str(ROOT / 'finetune.py'), *names]


def weights(output: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(output / 'model.safetensors')


def resumed(data: Path, whole: Path, arguments: Sequence[str]) -> str:
    """Interrupts a command in its second epoch, goes on, and compares the end with that of the whole one."""
    output = whole.with_name(f'{whole.name} again')
    process = subprocess.Popen(command(data, output, arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 600  # seconds
    while not list(output.glob('checkpoints/*-*[1-9]*.safetensors')):  # one after the first update
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError('The command ended before it could be interrupted.')
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate()
    if (output / 'metrics.json').exists():
        raise RuntimeError('The command ended before it could be interrupted: give it more --epochs.')
    subprocess.run(command(data, output, arguments), check=True, stdout=subprocess.DEVNULL)
    first, second = weights(whole), weights(output)
    different = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    return f'{len(different)} of {len(first)} tensors differ after an interruption'


@app.default
def main(
    model: str = 'xception_paper',
    image_size: int = 299,
    photos: int = 2000,
    batch_size: int = 32,
    recipes: tuple[str, ...] = ('transfer', 'full'),
    precisions: tuple[str, ...] = ('bf16', 'fp16'),
    workers: tuple[int, ...] = (4, 12),
    epochs: int = 2,
    pretrained: bool = False,
) -> None:
    """Runs all of it.

    Args:
        model: Model to fine-tune.
        image_size: Height and width of the images in pixels.
        photos: Number of photos to make.
        batch_size: Images in a step.
        recipes: Recipes of finetune.py.
        precisions: Values of --mixed-precision.
        workers: Numbers of processes that decode images.
        epochs: Passes over the images.
        pretrained: Start from pretrained weights, which have to be had for that; speed does not depend on it.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    print(f'{device}, torch {torch.__version__}, {model} at {image_size} pixels, {photos} photos')
    print(f'{"recipe":10} {"precision":10} {"workers":>7} {"input":>10} {"network":>10}   images/s, of the last epoch')
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, 'photos')
        make_photos(data, photos)
        shared = ['--model', model, '--image-size', str(image_size), '--batch-size', str(batch_size)]
        shared += ['--epochs', str(epochs), '--head-epochs', '1', '--feature-cache', str(Path(folder, 'features'))]
        shared += [] if pretrained else ['--no-pretrained']
        for recipe in recipes:
            for precision in precisions:
                for number in workers:
                    arguments = [*shared, '--recipe', recipe, '--mixed-precision', precision, '--workers', str(number)]
                    output = Path(folder, f'{recipe} {precision} {number}')
                    ended = subprocess.run(command(data, output, arguments), capture_output=True, text=True)
                    if ended.returncode:
                        sys.exit(f'{ended.stdout}\n{ended.stderr}')
                    last = json.loads((output / 'history.json').read_text())[-1]
                    speeds = ''.join(f'{last[name]:11.1f}' for name in ('input_images_per_second', 'images_per_second'))
                    print(f'{recipe:10} {precision:10} {number:7}{speeds}', flush=True)
        print(resumed(data, output, arguments))


if __name__ == '__main__':
    app()
