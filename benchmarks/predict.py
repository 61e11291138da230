"""python benchmarks/predict.py --model build/kitchenware

Predicts photos of a megapixel by `xception_hub.Predictor`, and beside it decodes them without the network, and runs the
network without decoding: in turn, in one process. Where cores are shared, both together cannot cost less than the sum;
where the network has a device of its own, they should cost the larger of the two.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from cyclopts import App
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

from port_a_keras_model import download

from xception_hub.inference.predictor import EAGER, Predictor, Prepared, cores
from xception_hub.timing import device_model, in_turn

PIXELS = 1_000_000
QUALITY = 90  # of JPEG

app = App(help=__doc__, version_flags=[])


def save_photos(folder: Path, count: int) -> list[Path]:
    """Photos of a megapixel, made from those of the public checkpoint, each as a file of its own."""
    photos = download().photos
    paths = []
    for number in range(count):
        photo = Image.open(photos[number % len(photos)]).convert('RGB')
        scale = (PIXELS / (photo.width * photo.height)) ** 0.5
        paths.append(folder / f'{number}.jpg')
        photo.resize((round(photo.width * scale), round(photo.height * scale))).save(paths[-1], quality=QUALITY)
    return paths


class Clock:
    """Seconds of a call, and of all cores that it has kept busy."""

    def __init__(self) -> None:
        self.busy: dict[str, list[float]] = {}

    def timed(self, name: str, call: Callable[[], object]) -> Callable[[], float]:
        def step() -> float:
            start, busy = time.perf_counter(), time.process_time()
            call()
            self.busy.setdefault(name, []).append(time.process_time() - busy)
            return time.perf_counter() - start

        return step


@app.default
def main(
    *,
    model: str,
    photos: int = 120,
    image_size: int | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    engine: str = EAGER,
    device: str | None = None,
    repeats: int = 3,
) -> None:
    """Compares predicting with decoding alone and with the network alone.

    Args:
        model: What `xception-hub predict --model` takes.
        photos: Number of photos.
        image_size: Height and width in pixels of the network's images. By default the model's own.
        batch_size: Images in one step.
        threads: Threads that decode. By default one for each core.
        engine: What computes.
        device: Device that computes.
        repeats: Rounds, of which the median counts.
    """
    predictor = Predictor(
        model, image_size=image_size, batch_size=batch_size, threads=threads, engine=engine, device=device
    )
    prepared = Prepared(predictor)
    with tempfile.TemporaryDirectory() as folder:
        files = save_photos(Path(folder), photos)
        pixels = torch.stack([prepared(path) for path in files])  # type: ignore[misc]

        def decode() -> None:
            with ThreadPoolExecutor(threads or cores()) as pool:
                for _ in pool.map(prepared, files):
                    pass

        def compute() -> Iterator[object]:
            for batch in pixels.split(batch_size):
                yield predictor.cells(predictor.outputs(batch))

        clock = Clock()
        calls = {'decoding': decode, 'network': lambda: list(compute()), 'both': lambda: list(predictor.predict(files))}
        seconds = in_turn({name: clock.timed(name, call) for name, call in calls.items()}, repeats)
    print(
        f'{device_model(predictor.loaded.device)}; {photos} photos of a megapixel, {threads or cores()} threads decode'
    )
    print(f'{"":12}{"s":>8}{"images/s":>10}{"ms of a core for each":>24}')
    for name in calls:
        busy = sorted(clock.busy[name][1:])[repeats // 2]
        print(f'{name:12}{seconds[name]:8.2f}{photos / seconds[name]:10.1f}{1000 * busy / photos:24.1f}')
    larger, total = max(seconds['decoding'], seconds['network']), seconds['decoding'] + seconds['network']
    print(f'both: {seconds["both"] / larger:.2f} of the larger, {seconds["both"] / total:.2f} of the sum')


if __name__ == '__main__':
    app()
