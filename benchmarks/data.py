"""python benchmarks/data.py

Reads a table of a million images and a folder of 100,000, as finetune.py does before it scans them: seconds, seconds of
the processor, and what memory grows by. Each is read in a process of its own. The images are hard links to a few.
"""

import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from cyclopts import App
from PIL import Image

CLASSES = 10
LINKS = 20_000  # of one file; file systems have a limit
MB = 2**20

app = App(help=__doc__, version_flags=[])


def write(root: Path, count: int) -> tuple[Path, Path]:
    """A folder of images with a folder for each class, and a table that names them."""
    photos, table = root / 'photos', root / 'table.csv'
    for number in range(CLASSES):
        (photos / f'class {number}').mkdir(parents=True)
    with open(table, 'w', encoding='utf-8') as rows:
        rows.write('image,label\n')
        for number in range(count):
            name = f'photos/class {number % CLASSES}/{number:07}.png'
            if number % LINKS == 0:
                first = root / name
                Image.new('RGB', (8, 8), (number // LINKS % 256, 0, 0)).save(first)
            else:
                os.link(first, root / name)
            rows.write(f'{name},class {number % CLASSES}\n')
    return photos, table


def measure(dataset: str) -> tuple[int, float, float, float]:
    """Images, seconds, seconds of the processor, and MB that the process grows by."""
    from xception_hub.data.data_settings import DataSettings
    from xception_hub.data.labelled import load

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, used = time.perf_counter(), time.process_time()
    data = load(DataSettings(dataset=dataset))
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    return (
        len(data.train),
        seconds,
        processor,
        (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MB,
    )


@app.default
def main(rows: int = 1_000_000, files: int = 100_000) -> None:
    """Prints a line for each.

    Args:
        rows: Images that the table names.
        files: Images in the folder.
    """
    print(f'{"":16}{"images":>9}{"seconds":>10}{"processor":>11}{"MB":>8}')
    for name, count in (('table', rows), ('folder', files)):
        with tempfile.TemporaryDirectory() as folder:
            photos, table = write(Path(folder), count)
            with ProcessPoolExecutor(1, get_context('spawn')) as process:
                path = str(table if name == 'table' else photos)
                images, seconds, processor, grown = process.submit(measure, path).result()
        print(f'{name:16}{images:9}{seconds:10.1f}{processor:11.1f}{grown:8.0f}', flush=True)


if __name__ == '__main__':
    app()
