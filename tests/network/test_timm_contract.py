"""What timm's and torch's tools make of the network, beyond what timm's own tests ask for."""

import copy
import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.optim
import torch
from random_model import images, norms_of, random_model
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call, grad, vmap

from xception_hub import Xception
from xception_hub.layers import MaxPool2dSame

# Two computations of the same, relative and absolute: the same operations; the same in another order; in bfloat16.
SAME = dict(rtol=0.0, atol=0.0)
FLOAT64 = dict(rtol=1e-9, atol=1e-11)
FLOAT32 = dict(rtol=1e-4, atol=1e-5)
BFLOAT16_ERROR = 0.05  # relative L2 of the logits; measured: 0.01

NARROW: dict[str, Any] = dict(width_multiplier=0.25)
EXAMPLE = (75, 90)  # what programs are made with: odd and even
SIZES = [(71, 71), (72, 96), (98, 81)]  # what they run with: the smallest, square, even, even and odd


@pytest.fixture(scope='module')
def model() -> Xception:
    """Read only: a test that changes it works on a copy."""
    return random_model(**NARROW)


def assert_equal_at_all_sizes(
    program: Callable[[Tensor], Tensor],
    model: Xception,
    tolerance: dict[str, float] = SAME,
    batches: tuple[int, ...] = (1, 3),
) -> None:
    """A program made from the model computes what the model does, whatever the parity of the sizes."""
    with torch.no_grad():
        for size in SIZES:
            for batch in batches:
                x = images(*size, batch=batch)
                torch.testing.assert_close(program(x), model(x), **tolerance)


def first_modules(model: Xception) -> Xception:
    """A copy that ends behind module 2: all kinds of layers, for what is slow."""
    model = copy.deepcopy(model)
    model.prune_intermediate_layers([1])
    return model


# Compilers and graphs -------------------------------------------------------------------------------------------------


def dynamic_axes() -> dict[int, Any]:
    return {0: Dim('batch'), 2: Dim('height', min=71, max=2048), 3: Dim('width', min=71, max=2048)}


def test_export(model: Xception) -> None:
    """One exported program takes any batch, height and width; the limit is that of the network."""
    program = torch.export.export(model, (images(*EXAMPLE, batch=2),), dynamic_shapes=(dynamic_axes(),)).module()
    assert_equal_at_all_sizes(program, model)
    with pytest.raises(AssertionError, match='71'):
        program(images(70, 90))


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch.compile's state, empty before and after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(('dynamic', 'graphs'), [(True, 1), pytest.param(None, 2, marks=pytest.mark.slow)])
def test_compile(dynamic: bool | None, graphs: int, model: Xception, compiler: None) -> None:
    """One graph without breaks serves all sizes and batches; by default, a first one serves the first size alone."""
    compiled_graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        compiled_graphs.append(graph)
        return graph.forward

    model = first_modules(model)
    program = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        program(images(*EXAMPLE, batch=2))
    assert_equal_at_all_sizes(program, model, batches=(3, 2))
    assert len(compiled_graphs) == graphs


@pytest.mark.skipif(not (shutil.which('g++') or shutil.which('clang++')), reason='inductor needs a C++ compiler')
@pytest.mark.slow
def test_compile_to_machine_code(model: Xception, compiler: None) -> None:
    """inductor's code for dynamic sizes computes the same, in the modules that have all kinds of layers."""
    model = first_modules(model)
    program = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        program(images(*EXAMPLE, batch=2))
    assert_equal_at_all_sizes(program, model, FLOAT32, batches=(2,))


@pytest.mark.skipif(not (shutil.which('g++') or shutil.which('clang++')), reason='inductor needs a C++ compiler')
@pytest.mark.slow
def test_compiled_pooling_trains(compiler: None) -> None:
    """inductor's gradients in channels_last, for odd and even sizes."""
    pool = MaxPool2dSame()
    compiled = torch.compile(pool, dynamic=False)
    for size in (5, 6):
        gradients = []
        for layer in (pool, compiled):
            x = torch.arange(2 * 8 * size**2).float().sin().reshape(2, 8, size, size)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            layer(x).square().sum().backward()
            gradients.append(x.grad)
        assert torch.equal(*gradients)


@pytest.mark.parametrize(
    'make',
    [
        torch.jit.script,
        pytest.param(  # the tracer warns of every check of a shape
            lambda model: torch.jit.trace(model, images(*EXAMPLE)),
            id='trace',
            marks=pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning'),
        ),
        torch.fx.symbolic_trace,
    ],
)
def test_graphs(make: Callable[[nn.Module], Callable[[Tensor], Tensor]], model: Xception) -> None:
    """TorchScript and torch.fx make programs that don't depend on the size of the example."""
    assert_equal_at_all_sizes(make(model), model)


# Layouts, dtypes, transformations -------------------------------------------------------------------------------------


def test_channels_last(model: Xception) -> None:
    """Every map keeps the layout of the images, and its values."""
    model, x, last = copy.deepcopy(model).double(), images(*EXAMPLE, batch=2).double(), torch.channels_last
    faster = copy.deepcopy(model).to(memory_format=last)
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True)
        maps = faster.forward_intermediates(x.to(memory_format=last), intermediates_only=True)
    assert all(m.is_contiguous(memory_format=last) and not m.is_contiguous() for m in maps)
    torch.testing.assert_close(maps, expected, **FLOAT64)


def test_bfloat16_autocast(model: Xception) -> None:
    """Under autocast the logits are bfloat16, and off by no more than its rounding explains."""
    x = images(71, 71)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - model(x)).norm() < BFLOAT16_ERROR * model(x).norm()


def test_per_sample_gradients(model: Xception) -> None:
    """torch.func's vmap of grad equals one backward pass per image."""
    model, x = copy.deepcopy(model).double(), images(71, 71, batch=2).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def score(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],))[0, 0]

    gradients = vmap(grad(score), (None, 0))(parameters, x)
    for i, image in enumerate(x):
        expected = torch.autograd.grad(model(image[None])[0, 0], list(model.parameters()))
        torch.testing.assert_close([g[i] for g in gradients.values()], list(expected), **FLOAT64)


# Training -------------------------------------------------------------------------------------------------------------


def step(model: Xception, x: Tensor, compiled: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients and the buffers after one training step."""
    torch.manual_seed(0)
    forward = torch.compile(model, backend='aot_eager', fullgraph=True) if compiled else model
    forward(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())


def test_grad_checkpointing() -> None:
    """It changes neither gradients nor moving statistics, and counts the batch once, with random drops too."""
    plain = random_model(**NARROW, drop_rate=0.5, drop_path_rate=0.5).double().train()
    for norm in norms_of(plain):
        norm.momentum = 0.3  # the user's choice survives, too
    saving, before = copy.deepcopy(plain), copy.deepcopy(dict(plain.named_buffers()))
    saving.set_grad_checkpointing()
    x = images(71, 71, batch=2).double()
    gradients, buffers = step(plain, x)
    torch.testing.assert_close(step(saving, x), (gradients, buffers), **FLOAT64)
    assert all((norm.num_batches_tracked, norm.momentum) == (1, 0.3) for norm in norms_of(saving))
    assert not any(torch.equal(before[name], buffer) for name, buffer in buffers.items())


def test_grad_checkpointing_compiled(model: Xception, compiler: None) -> None:
    """The same holds for a compiled training step."""
    plain = first_modules(model).double().train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = images(71, 71, batch=2).double()
    expected = step(plain, x)
    torch.testing.assert_close(step(saving, x, compiled=True), expected, **FLOAT64)


def test_layer_decay() -> None:
    """Each module has a learning rate of its own, growing from the stem to the head, which has the full one."""
    model = timm.create_model('xception_paper', device='meta', fc_widths=(8,))
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales: dict[str, set] = {}
    for group in timm.optim.param_groups_layer_decay(model, layer_decay=0.5):
        for parameter in group['params']:
            flow, number = names[parameter].split('.')[:2]
            module = f'{flow}.{number}' if flow.endswith('_flow') else flow
            scales.setdefault(module, set()).add(group['lr_scale'])
    flows = [f'{flow}_flow.{i}' for flow, n in (('entry', 3), ('middle', 8), ('exit', 2)) for i in range(n)]
    assert scales == {module: {0.5 ** (14 - i)} for i, module in enumerate(['stem', *flows, 'head'])}


# Saving ---------------------------------------------------------------------------------------------------------------

# No argument of the network has its default. timm leaves the rates out of config.json: they belong to the training.
RATES = ('drop_rate', 'drop_path_rate')
MODEL_ARGS = dict(
    num_classes=7,
    in_chans=4,
    global_pool='catavgmax',
    output_stride=16,
    drop_rate=0.1,
    act_layer='silu',
    bn_eps=1e-5,
    pool_padding='symmetric',
    stem_padding=1,
    min_img_size=64,
    mid_act_layer='elu',
    segments=2,
    order='pointwise_first',
    width_multiplier=0.5,
)
# of these, a network takes the first or the second: layers before the classifier, and what residual connections allow
EITHER: list[dict[str, Any]] = [
    dict(fc_widths=[32, 16], drop_path_rate=0.2),
    dict(
        head_layers=[{'bn': 1e-5, 'momentum': 0.9}, {'fc': 32, 'bias': False}, {'act': 'gelu'}, {'drop': 0.25}],
        residual=False,
    ),
]


@pytest.mark.parametrize('either', EITHER, ids=lambda either: next(iter(either)))
def test_save_and_reload(either: dict[str, Any], tmp_path: Path) -> None:
    """config.json records every argument that the function depends on: the reloaded network is equal bit by bit."""
    arguments = {name: p.default for name, p in inspect.signature(Xception).parameters.items()}
    args = {**MODEL_ARGS, **either}
    assert {*args, *EITHER[0], *EITHER[1], 'device', 'dtype'} == set(arguments)
    assert not [name for name, value in args.items() if value == arguments[name]]

    model = random_model(**args)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / 'config.json').read_text(encoding='utf-8'))
    assert config['architecture'] == 'xception_paper'
    assert config['model_args'] == {name: value for name, value in args.items() if name not in RATES}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'model.safetensors']

    reloaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = images(64, 65, chans=4)
    assert torch.equal(reloaded(x), model(x))
