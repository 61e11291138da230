"""python benchmarks/inference.py --plot inference.png

Seconds per image of timm's `legacy_xception`, of `xception_paper` in every form that is installed here, and of what
`xception_hub.optimize` returns: in turn, in one process, each also as a fraction of the speed at which this machine
multiplies matrices at that moment. The weights are random, on which speed does not depend.
"""

import copy
import json
import sys
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import timm
import torch
from cyclopts import App, Parameter
from torch import Tensor, fx, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import xception_hub
from xception_hub.allocator import keep_freed_memory
from xception_hub.inference.check import Function, Reference
from xception_hub.inference.engines import DTYPES, ENGINES
from xception_hub.inference.folding import fold
from xception_hub.inference.photo_batches import Photos
from xception_hub.paper.checks import count_macs
from xception_hub.timing import device_model, in_turn, lacks_bf16, timed

BASELINE = 'legacy_xception'
MATRIX = 2048  # rows and columns, whose multiplication is the machine's peak
CALLED_WITH = 8  # images in each turn of a contender, at least
GROWTH = ((128, 192, 256, 299, 384, 512), (1, 2, 4, 8, 16))  # pixels, batches
RTX_3090 = 1625  # images per second of legacy_xception that timm publishes: AMP, channels_last, batch 256

SEVERAL = Parameter(consume_multiple=True, negative='')
app = App(help=__doc__, version_flags=[])


class Result(NamedTuple):
    """Median seconds of a batch; its speed as a ratio to the baseline's, and as a fraction of the machine's peak."""

    seconds: float
    ratio: float
    of_peak: float


def in_channels_last(model: nn.Module, autocast: bool = False) -> Function:
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def run(images: Tensor) -> Any:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            return model(images.contiguous(memory_format=torch.channels_last))

    return run


def torchscript(folded: nn.Module, example: Tensor) -> Function:
    model = copy.deepcopy(folded).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TorchScript is deprecated, and stays in the comparison
        traced = torch.jit.trace(model, example.contiguous(memory_format=torch.channels_last))
        function = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    return lambda images: function(images.contiguous(memory_format=torch.channels_last))


def contenders(name: str, example: Tensor, precisions: Sequence[str], compile: bool) -> Iterator[tuple[str, Function]]:
    """All that runs here, by name; what computes in bf16 says so in its name."""
    device = example.device
    model = make(name, device)
    folded = fold(model)
    yield BASELINE, make(BASELINE, device)
    yield name, model
    yield 'channels_last', in_channels_last(model)
    if device.type == 'cuda' and 'bf16' in precisions:
        yield 'channels_last, AMP, bf16', in_channels_last(model, autocast=True)
    yield 'folded, jit.optimize_for_inference', torchscript(folded, example)
    for precision in precisions:
        reference = Reference(model, example, precision, Photos(example, 'images'))
        for engine, row in ENGINES.items():
            able = device.type in row.devices and precision in row.precisions and not row.missing()
            if able and (compile or engine != 'inductor'):
                yield f'folded, {engine}, {precision}', row.build(reference).run


def optimized(name: str, images: Tensor, precisions: Sequence[str]) -> Iterator[tuple[str, Function]]:
    """What `optimize` chooses for these images."""
    for precision in precisions:
        chosen = xception_hub.optimize(make(name, images.device), images, precision=precision)
        yield f'optimize: {chosen.engine}, {precision}', chosen


def multiplication(device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    left, right = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right


def race(
    functions: dict[str, Function], images: Tensor, macs: int, precisions: Sequence[str], repeats: int
) -> dict[str, Result]:
    """Times all of them in turn, and matrix multiplication with them.

    Args:
        functions: Name -> function of images.
        images: [B, C, H, W].
        macs: Multiply-adds for one image.
        precisions: What they compute in.
        repeats: Number of timed repeats.
    """
    device = images.device
    calls = max(1, CALLED_WITH // len(images))
    steps = {name: timed(partial(function, images), device, calls) for name, function in functions.items()}
    steps |= {precision: timed(multiplication(device, DTYPES[precision]), device) for precision in precisions}
    with torch.no_grad():
        seconds = in_turn(steps, repeats)
    needed = {p: len(images) * macs / MATRIX**3 * seconds[p] for p in precisions}  # seconds at the peak
    return {
        name: Result(
            seconds[name],
            seconds[BASELINE] / seconds[name],
            needed['bf16' if 'bf16' in name else 'fp32'] / seconds[name],
        )
        for name in functions
    }


def make(name: str, device: torch.device) -> nn.Module:
    return timm.create_model(name).eval().to(device)


def print_results(size: int, batch_size: int, results: dict[str, Result]) -> None:
    title = f'{size} pixels, batch {batch_size}'
    print(f'\n{title:40}{"ms/image":>10}{"images/s":>10}{"ratio":>8}{"of the peak":>13}')
    for name, (seconds, ratio, of_peak) in results.items():
        print(f'{name:40}{1000 * seconds / batch_size:10.1f}{batch_size / seconds:10.1f}{ratio:8.2f}{of_peak:13.2f}')


class LayerTimes(fx.Interpreter):
    """Runs a folded network layer by layer, and adds the seconds up by kind of layer."""

    def __init__(self, model: fx.GraphModule, device: torch.device) -> None:
        super().__init__(model)
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def run_node(self, node: fx.Node) -> Any:
        outputs: list[Any] = []
        seconds = timed(lambda: outputs.append(super(LayerTimes, self).run_node(node)), self.device)()
        self.seconds[self.kind(node)] += seconds
        return outputs[0]

    def kind(self, node: fx.Node) -> str:
        if node.op != 'call_module':
            return 'max pooling' if 'pool' in str(node.target) else 'sums and others'
        layer = self.fetch_attr(str(node.target))
        if not isinstance(layer, nn.Conv2d):
            return type(layer).__name__
        if layer.groups > 1:
            return 'depthwise convolutions'
        return 'pointwise convolutions' if layer.kernel_size == (1, 1) else 'regular convolutions'


@torch.no_grad()
def print_layers(model: str, images: Tensor, repeats: int) -> None:
    """Prints where the time of the folded network in channels_last goes."""
    network = fold(make(model, images.device)).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    assert isinstance(network, fx.GraphModule)
    LayerTimes(network, images.device).run(images)
    times = LayerTimes(network, images.device)
    for _ in range(repeats):
        times.run(images)
    total = sum(times.seconds.values())
    print(f'\n{"folded, pytorch, layer by layer":40}{"ms/image":>10}{"share":>10}')
    for kind, seconds in sorted(times.seconds.items(), key=lambda item: -item[1]):
        print(f'{kind:40}{1000 * seconds / repeats / len(images):10.2f}{seconds / total:10.2f}')


@torch.no_grad()
def print_growth(function: Function, name: str, device: torch.device, repeats: int) -> None:
    """Prints how the time of an image depends on its pixels and on the batch."""
    sizes, batches = GROWTH
    print(f'\n{name + ": ms/image":40}' + ''.join(f'{f"batch {batch}":>10}' for batch in batches))
    for size in sizes:
        images = {batch: torch.randn(batch, 3, size, size, device=device) for batch in batches}
        seconds = in_turn({b: timed(partial(function, x), device) for b, x in images.items()}, repeats)
        print(f'{f"{size} pixels":40}' + ''.join(f'{1000 * seconds[b] / b:10.1f}' for b in batches), flush=True)


def draw(path: Path, title: str, shapes: dict[str, dict[str, Result]]) -> None:
    """A bar for each contender and shape."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(shapes), figsize=(3 + 3 * len(shapes), 5), sharey=True, squeeze=False, layout='constrained'
    )
    for axis, (shape, results) in zip(axes[0], shapes.items()):
        bars = axis.barh(list(results), [result.ratio for result in results.values()], color='#3d6bd6')
        axis.bar_label(bars, fmt='%.2f', padding=2)
        axis.set(title=shape, xlabel=f'speed, {BASELINE} = 1')
        axis.margins(x=0.15)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0][0].invert_yaxis()  # shared: the first contender is on top
    figure.suptitle(textwrap.fill(title, 40 + 40 * len(shapes)), fontsize='small')
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


@app.default
def main(
    *,
    model: str = 'xception_paper',
    sizes: Annotated[tuple[int, ...], SEVERAL] = (299, 224),
    batch_sizes: Annotated[tuple[int, ...], SEVERAL] = (1, 8),
    repeats: int = 5,
    threads: int | None = None,
    device: str = 'cuda' if torch.cuda.is_available() else 'cpu',
    precisions: Annotated[tuple[str, ...], SEVERAL] = tuple(DTYPES),
    compile: bool = False,
    layers: bool = False,
    growth: bool = False,
    keep_memory: bool = False,
    json_file: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Measures all of it.

    Args:
        model: Network to compare with legacy_xception.
        sizes: Heights and widths of the images in pixels.
        batch_sizes: Numbers of images in a batch.
        repeats: Number of timed repeats, after one that is not counted. Their median is printed.
        threads: Number of threads of torch. By default torch chooses.
        device: cuda or cpu.
        precisions: What the engines compute in. bf16 is left out on a CPU that only emulates it.
        compile: Let Inductor take part, which builds for minutes on a CPU.
        layers: Print where the time of the folded network goes, too.
        growth: Print how the time depends on pixels and batch, too.
        keep_memory: Keep freed memory, which all contenders in PyTorch gain from.
        json_file: File for the results.
        plot: File for a picture of them.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    if keep_memory:
        keep_freed_memory()
    packages = [
        f'{row.packages[-1]} {row.version().split()[-1]}'
        for row in ENGINES.values()
        if row.packages and not row.missing()
    ]
    machine = ', '.join([device_model(device), f'torch {torch.__version__}', f'timm {timm.__version__}', *packages])
    print(machine)
    examples = {
        (size, batch_size): torch.randn(batch_size, 3, size, size, device=device)
        for size in sizes
        for batch_size in batch_sizes
    }
    example = next(iter(examples.values()))
    precisions = tuple(p for p in precisions if p == 'fp32' or not lacks_bf16(example.device))
    functions = dict(contenders(model, example, precisions, compile))
    shapes: dict[str, dict[str, Result]] = {}
    counted = make(model, torch.device('meta'))
    for (size, batch_size), images in examples.items():
        chosen = dict(optimized(model, images, precisions))
        results = race({**functions, **chosen}, images, count_macs(counted, size)[''], precisions, repeats)
        shapes[f'{size} pixels, batch {batch_size}'] = results
        print_results(size, batch_size, results)
    if example.is_cuda:
        print(f"timm's published speed of {BASELINE}, AMP on an RTX 3090: {RTX_3090} images/s")
    if layers:
        print_layers(model, example, repeats)
    if growth:
        name, function = next(optimized(model, example, precisions))
        print_growth(function, name, example.device, repeats)
    if json_file:
        table = {shape: {name: r._asdict() for name, r in results.items()} for shape, results in shapes.items()}
        json_file.write_text(json.dumps({'machine': machine, 'repeats': repeats, 'results': table}, indent=2))
    if plot:
        draw(plot, f'{model}, {machine}, medians of {repeats}', shapes)


if __name__ == '__main__':
    app()
