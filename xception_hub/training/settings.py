"""Everything that a run of finetune.py depends on, once: its command line and its YAML files are made from this."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

from .recipes import RECIPES

__all__ = [
    'RESUME_MAY_CHANGE',
    'Augmentation',
    'DataSettings',
    'Machine',
    'ModelSettings',
    'Optimization',
    'Output',
    'Settings',
    'phases',
]

AT_LEAST_1, POSITIVE, SHARE = (
    Parameter(validator=Number(**bounds)) for bounds in (dict(gte=1), dict(gt=0), dict(gte=0, lt=1))
)
NOT_NEGATIVE = Parameter(validator=Number(gte=0))
SWITCH = Parameter(negative='')  # without a --no-... beside it


def literal(type_: Any, tokens: Sequence[Token]) -> Any:
    """Value of an argument that any model may have: a Python literal (0.5, 16, False, [8, 8]), else the text itself."""
    text = tokens[0].value
    try:
        return ast.literal_eval({'true': 'True', 'false': 'False', 'null': 'None'}.get(text, text))
    except (ValueError, SyntaxError):
        return text


Choices = dict[str, Annotated[Any, Parameter(converter=literal, n_tokens=1)]]


def group(name: str, position: int) -> Callable[[type], type]:
    """Settings that --help shows together."""
    return Parameter(name='*', group=Group(name, sort_key=position), negative_iterable='')


@group('Data', 1)
@dataclass(frozen=True, kw_only=True)
class DataSettings:
    dataset: str
    """A name on the Hub, or a path: of a folder with a folder of images for each class; of a table (.csv, .tsv, .json,
    .jsonl, .parquet) with a column of paths or images; of what `save_to_disk` wrote."""
    dataset_config: str | None = None
    """Of a dataset on the Hub that has several."""
    image_column: str | None = None
    """If it can't be told which one it is."""
    label_column: str | None = None
    """The same. With lists of labels in it, an image has any number of classes (multi-label)."""
    train_split: str = 'train'
    """To train on."""
    validation_split: str | None = None
    """To judge on; by default the dataset's own, or a stratified part of the training split."""
    validation_share: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.2
    """Of that part."""
    streaming: bool = False
    """Read images in the order of the dataset, through a buffer for shuffling, without copying it first."""
    bad_images: Literal['error', 'skip'] = 'error'
    """What to do about images that can't be decoded. They are named in any case, and never replaced by others."""
    scan: bool = True
    """Decode every image once beforehand. Without, a bad one ends the run when it is met."""


@group('Model', 2)
@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    model: str = 'xception_paper'
    """What timm.create_model takes: a name, hf-hub:org/name or local-dir:DIR."""
    pretrained: bool = True
    """Start from the weights that go with the name."""
    model_args: Choices = field(default_factory=dict)
    """Further arguments of the model: --model-args.bn_eps 1e-5."""
    image_size: Annotated[int | None, AT_LEAST_1] = None
    """Height and width in pixels; by default the model's."""
    drop_rate: Annotated[float, SHARE] = 0.0
    """Dropout before the classifier."""
    drop_path_rate: Annotated[float, SHARE] = 0.0
    """Stochastic depth."""


@group('Optimization', 3)
@dataclass(frozen=True, kw_only=True)
class Optimization:
    recipe: Literal['probe', 'transfer', 'full', 'paper-imagenet', 'paper-jft'] = 'transfer'
    """Which values the settings have that are not given: probe, a new classifier on the features of the frozen network;
    transfer, that, then everything at a small rate; full, everything from the start; paper-..., the paper's training
    from scratch."""
    epochs: Annotated[int, AT_LEAST_1] = 10
    """Passes over the training images."""
    head_epochs: Annotated[int, AT_LEAST_1] = 100
    """Of the classifier alone, in the recipe transfer."""
    head_learning_rate: Annotated[float, POSITIVE] = 3e-3
    """The same."""
    batch_size: Annotated[int, AT_LEAST_1] = 32
    """Images in a step of one process; an update sees this times --accumulation times the number of processes."""
    accumulation: Annotated[int, AT_LEAST_1] = 1
    """Steps of an update."""
    optimizer: str = 'adamw'
    """timm's name of one."""
    optimizer_args: Choices = field(default_factory=dict)
    """Further arguments of the optimizer: --optimizer-args.eps 1e-3."""
    learning_rate: Annotated[float, POSITIVE] = 1e-3
    """Highest one, of an update; it is not scaled by the number of processes."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """Of weights; biases and normalizations have none."""
    momentum: Annotated[float, SHARE] = 0.9
    """Of optimizers that have one."""
    layer_decay: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1))] = None
    """Factor of the learning rate from each layer to the one before it."""
    schedule: Literal['constant', 'cosine', 'step'] = 'cosine'
    """Of the learning rate, by update."""
    warmup_epochs: Annotated[float, NOT_NEGATIVE] = 0.0
    """In which the learning rate rises."""
    decay_rate: Annotated[float, POSITIVE] = 0.1
    """Of the schedule step."""
    decay_epochs: Annotated[float, POSITIVE] = 30.0
    """Between steps of the schedule."""
    decay_images: Annotated[int | None, AT_LEAST_1] = None
    """The same, counted in images."""
    clip_grad: Annotated[float | None, POSITIVE] = None
    """Largest norm of the gradient."""
    batch_norm: Literal['frozen', 'train'] = 'frozen'
    """Whether batch normalization keeps to its moving statistics (inference mode) or learns new ones."""
    label_smoothing: Annotated[float, SHARE] = 0.0
    """Share of each label that goes to all classes."""
    class_weights: bool = False
    """Let all classes count the same in the loss."""
    balanced_sampling: bool = False
    """Show images of all classes equally often."""
    ema_decay: Annotated[float | None, SHARE] = None
    """Of a moving average of the weights (Polyak), which is what is judged and kept then."""
    metric: str = 'top1'
    """By which the best epoch is chosen: top1, top5, macro_f1, loss, ...; micro_f1, mean_average_precision and
    map_at_100 in multi-label."""
    class_importance: Path | None = None
    """A JSON object of the weight of each class, by name, in map_at_100: {"dog": 2.5, "cat": 1}; by default all weigh
    the same."""
    early_stopping: Annotated[int | None, AT_LEAST_1] = None
    """Epochs without a better one after which a phase ends."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Of everything that is drawn: split, order, augmentation, dropout."""


@group('Augmentation', 4)
@dataclass(frozen=True, kw_only=True)
class Augmentation:
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Least and largest share of an image's area that a random crop takes."""
    flip: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0
    """Probability of a flip from left to right."""
    vertical_flip: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0
    """Probability of a flip upside down."""
    color_jitter: Annotated[float, NOT_NEGATIVE] = 0.0
    """Strength of random changes of brightness, contrast and saturation."""
    auto_augment: str | None = None
    """timm's name of a policy, like rand-m7-mstd0.5-inc1."""
    random_erasing: Annotated[float, SHARE] = 0.0
    """Probability that a rectangle is blanked."""
    mixup: Annotated[float, NOT_NEGATIVE] = 0.0
    """Alpha."""
    cutmix: Annotated[float, NOT_NEGATIVE] = 0.0
    """Alpha."""


@group('Machine', 5)
@dataclass(frozen=True, kw_only=True)
class Machine:
    mixed_precision: Literal['no', 'bf16', 'fp16'] | None = None
    """By default as `accelerate config` says."""
    gradient_checkpointing: bool = False
    """Less memory for more computing."""
    compile: bool = False
    """torch.compile."""
    channels_last: bool = True
    """Memory format of images and weights."""
    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Processes that decode images, for each process that trains; by default up to 8 on a GPU and none on a CPU."""
    feature_cache: Path | None = None
    """Where the features of frozen networks are kept; by default in the cache of the Hugging Face libraries."""


@group('Output', 6)
@dataclass(frozen=True, kw_only=True)
class Output:
    output: Path = Path('finetuned')
    """Directory of the run, and of the model in the end."""
    checkpoint_minutes: Annotated[float, NOT_NEGATIVE] = 10.0
    """Between checkpoints, besides that of each epoch; 0 for one after each update."""
    keep_checkpoints: Annotated[int, AT_LEAST_1] = 2
    """How many of the newest; the best is kept besides."""
    tracker: tuple[str, ...] = ()
    """tensorboard, trackio, wandb: where to log to as well."""
    push: str | None = None
    """org/name: publish on the Hub in the end."""
    eval_only: Annotated[bool, SWITCH] = False
    """Evaluate the model as it is on the validation split (or the only one), and train nothing."""
    dry_run: Annotated[bool, SWITCH] = False
    """Scan the data, try one batch, estimate the memory, and write nothing."""


@Parameter(name='*')
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run depends on. A recipe sets values of its own; what is given replaces them."""

    data: DataSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    optimization: Optimization = field(default_factory=Optimization)
    augmentation: Augmentation = field(default_factory=Augmentation)
    machine: Machine = field(default_factory=Machine)
    output: Output = field(default_factory=Output)

    def flat(self) -> dict[str, Any]:
        """Name -> value, as YAML can express it."""
        merged = {name: value for part in asdict(self).values() for name, value in part.items()}
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in merged.items()
        }


# What may differ when a run goes on, for it doesn't change the result.
RESUME_MAY_CHANGE = frozenset(
    {'output', 'checkpoint_minutes', 'keep_checkpoints', 'tracker', 'push', 'dry_run', 'workers', 'feature_cache'}
)


def phases(settings: Settings) -> list[tuple[str, Settings]]:
    """The parts of a recipe, each with its settings."""
    s = settings.optimization
    if settings.output.eval_only:
        return []
    if s.recipe == 'transfer':
        first = replace(
            s,
            layer_decay=None,
            warmup_epochs=0.0,
            ema_decay=None,
            clip_grad=None,
            accumulation=1,
            optimizer_args={},
            **{**RECIPES['probe'](), 'epochs': s.head_epochs, 'learning_rate': s.head_learning_rate},
        )
        return [('probe', replace(settings, optimization=first)), ('everything', settings)]
    return [('probe' if s.recipe == 'probe' else 'everything', settings)]
