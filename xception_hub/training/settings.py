"""Everything that a run of finetune.py depends on, once: its command line and its YAML files are made from this."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import yaml
from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

from ..errors import SettingsError
from .recipes import RECIPES

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


def group(name: str, index: int) -> Callable[[type], type]:
    """Settings that --help shows together."""
    return Parameter(name='*', group=Group(name, sort_key=index), negative_iterable='')


@group('Data', 1)
@dataclass(frozen=True, kw_only=True)
class DataSettings:
    dataset: str
    """Dataset to learn from: a name on the Hub, or a path. The path is a folder with a folder of images for each class,
    or with metadata files; a table (.csv, .tsv, .json, .jsonl, .parquet) with a column of paths or images, several as
    a pattern in quotes, or a folder of them; or what `save_to_disk` wrote."""
    dataset_config: str | None = None
    """Configuration of a dataset on the Hub that has several. By default the only one."""
    image_column: str | None = None
    """Column with the images or their paths. By default it is found by type, then by name."""
    label_column: str | None = None
    """Column with the labels. By default it is found by type, then by name. Lists of labels mean that an image has any
    number of classes (multi-label). Names with commas between them are columns of 0 and 1, for a class each."""
    image_folder: Path | None = None
    """Folder of the images that a table names. By default the table's own."""
    train_split: str = 'train'
    """Split with the training images."""
    validation_split: str | None = None
    """Split with the validation images. By default the dataset's own (validation, val, valid, dev or test), else a
    stratified share of the training split; "" for a share in any case."""
    validation_table: str | None = None
    """Table or folder with the validation images, apart from the dataset's."""
    validation_share: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.2
    """Share of the training images held out for validation, where the dataset has no validation split."""
    split_column: str | None = None
    """Column of a table with the split of each row; "" for none. By default it is told by its name and its values."""
    label_separator: str | None = None
    """Text between the labels of an image in one text, such as " " or ","; "" if such texts are single labels."""
    folders: Literal['splits', 'outer', 'inner', 'path', 'metadata'] | None = None
    """What the folders in a folder are, where two readings are possible. splits: those with names of splits are splits.
    Else folders are classes: outer: the first ones, whatever is in them; inner: those that hold images, of which equal
    names are one class; path: the same, each by its path. metadata: images and labels are those of the metadata
    files."""
    unlabelled: Literal['error', 'skip', 'class'] = 'error'
    """What to do with rows without a label, or with -1 beside 0, 1, ...: stop with an error, or leave them aside;
    class: -1 is a class of its own."""
    empty_classes: Literal['error', 'skip'] = 'error'
    """What to do with folders of classes without an image that can be read: stop with an error, or leave them out."""
    grey_maximum: Annotated[int | None, AT_LEAST_1] = None
    """Value that is white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16. By default 65535, if
    images use at least a quarter of these values."""
    streaming: bool = False
    """Read images in the order of the dataset, through a buffer that shuffles them, without copying the dataset
    first."""
    bad_images: Literal['error', 'skip'] = 'error'
    """What to do with images that cannot be decoded: stop with an error, or skip them. They are named in any case, and
    never silently replaced."""
    max_train_samples: Annotated[int | None, AT_LEAST_1] = None
    """Largest number of training images, drawn at random after the validation split. By default all of them."""
    scan: bool = True
    """Decode every image once before training. Without the scan, a bad image ends the run when it is met."""


@group('Model', 2)
@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    model: str = 'xception_paper'
    """Model to adapt, as timm.create_model takes it: a name, hf-hub:org/name or local-dir:DIR."""
    pretrained: bool = True
    """Start from the pretrained weights of the model."""
    model_args: Choices = field(default_factory=dict)
    """Further arguments of the model, for example --model-args.bn_eps 1e-5."""
    image_size: Annotated[int | None, AT_LEAST_1] = None
    """Height and width of the images in pixels. By default the model's own."""
    drop_rate: Annotated[float, SHARE] = 0.0
    """Dropout before the classifier, from 0 up to 1 (excluded)."""
    drop_path_rate: Annotated[float, SHARE] = 0.0
    """Stochastic depth: the share of images for which the last residual branch is left out."""


@group('Optimization', 3)
@dataclass(frozen=True, kw_only=True)
class Optimization:
    recipe: Literal['probe', 'transfer', 'full', 'paper-imagenet', 'paper-jft'] = 'transfer'
    """Recipe, which sets all values that are not given. probe: a new classifier on features of the frozen network;
    transfer: the same, then the whole network at a small rate; full: the whole network from the start; paper-imagenet
    and paper-jft: the paper's training from scratch."""
    epochs: Annotated[int, AT_LEAST_1] = 10
    """Passes over the training images."""
    head_epochs: Annotated[int, AT_LEAST_1] = 100
    """Passes over the training images while only the classifier trains (recipe transfer)."""
    head_learning_rate: Annotated[float, POSITIVE] = 3e-3
    """Learning rate while only the classifier trains (recipe transfer)."""
    batch_size: Annotated[int, AT_LEAST_1] = 32
    """Images in one step of one process. An update of the weights sees batch size x accumulation x number of
    processes."""
    accumulation: Annotated[int, AT_LEAST_1] = 1
    """Steps whose gradients are added up before the weights are updated."""
    optimizer: str = 'adamw'
    """timm's name of the optimizer."""
    optimizer_args: Choices = field(default_factory=dict)
    """Further arguments of the optimizer, for example --optimizer-args.eps 1e-3."""
    learning_rate: Annotated[float, POSITIVE] = 1e-3
    """Highest learning rate of the schedule. It is not scaled by the batch size or the number of processes."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight decay. Biases and normalizations have none."""
    momentum: Annotated[float, SHARE] = 0.9
    """Momentum, for optimizers that have one."""
    layer_decay: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1))] = None
    """Factor of the learning rate from each layer to the one before it. By default all layers learn alike."""
    schedule: Literal['constant', 'cosine', 'step'] = 'cosine'
    """Course of the learning rate over the updates."""
    warmup_epochs: Annotated[float, NOT_NEGATIVE] = 0.0
    """Epochs of learning-rate warm-up."""
    decay_rate: Annotated[float, POSITIVE] = 0.1
    """Factor of the learning rate at each step of the schedule step."""
    decay_epochs: Annotated[float, POSITIVE] = 30.0
    """Epochs between two steps of the schedule step."""
    decay_images: Annotated[int | None, AT_LEAST_1] = None
    """Images between two steps of the schedule step, instead of epochs."""
    clip_grad: Annotated[float | None, POSITIVE] = None
    """Largest norm of the gradient; a larger one is scaled down. By default gradients are not clipped."""
    batch_norm: Literal['frozen', 'train'] = 'frozen'
    """Batch normalization: frozen keeps the moving statistics (inference mode), train learns new ones."""
    precise_bn_images: Annotated[int, NOT_NEGATIVE] = 0
    """Training images from which the statistics of batch normalization are computed anew for the weights of each
    evaluation, averages included (precise BN). 0 takes the moving ones, which lag behind the weights."""
    label_smoothing: Annotated[float, SHARE] = 0.0
    """Share of each label that is spread over all classes."""
    class_weights: bool = False
    """Weight the loss so that all classes count the same, however many images they have."""
    balanced_sampling: bool = False
    """Show images of all classes equally often, rare ones several times an epoch."""
    ema_decay: Annotated[float | None, SHARE] = None
    """Decay of a moving average of the weights (Polyak averaging), which is evaluated and kept instead of the last
    weights. By default there is no average."""
    metric: str = 'top1'
    """Figure that chooses the best epoch: top1, top5, macro_f1, loss, ...; for multi-label datasets micro_f1,
    mean_average_precision or map_at_100, too."""
    early_stopping: Annotated[int | None, AT_LEAST_1] = None
    """Epochs without a better one after which a phase ends. By default all epochs are run."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of everything random: split, order, augmentation, dropout."""


@group('Augmentation', 4)
@dataclass(frozen=True, kw_only=True)
class Augmentation:
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest share of the image area in a random crop. 1 1 takes the whole image."""
    flip: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0
    """Probability of a flip from left to right."""
    vertical_flip: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0
    """Probability of a flip upside down."""
    color_jitter: Annotated[float, NOT_NEGATIVE] = 0.0
    """Strength of random changes of brightness, contrast and saturation; 0 for none."""
    auto_augment: str | None = None
    """timm's name of an augmentation policy, such as rand-m7-mstd0.5-inc1. By default there is none."""
    random_erasing: Annotated[float, SHARE] = 0.0
    """Probability that a random rectangle of an image is blanked."""
    mixup: Annotated[float, NOT_NEGATIVE] = 0.0
    """Alpha of mixup, which blends pairs of images and their labels; 0 for none."""
    cutmix: Annotated[float, NOT_NEGATIVE] = 0.0
    """Alpha of cutmix, which pastes a rectangle of one image into another; 0 for none."""


@group('Machine', 5)
@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    mixed_precision: Literal['no', 'bf16', 'fp16'] | None = None
    """Precision of the computation: no is float32. By default what `accelerate config` chose."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: three times less memory for them, up to twice the time."""
    compile: bool = False
    """Compile the network with torch.compile."""
    channels_last: bool = True
    """Keep images and weights in the memory format channels_last, which is faster for convolutions."""
    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Processes that decode images, for each process that trains. By default up to 8 on a GPU, and none on a CPU."""
    feature_cache: Path | None = None
    """Folder for the features of frozen networks. By default in the cache of the Hugging Face libraries."""


@group('Output', 6)
@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    output: Path = Path('finetuned')
    """Directory of the run; in the end it is the model directory, with the report."""
    checkpoint_minutes: Annotated[float, NOT_NEGATIVE] = 10.0
    """Minutes between two checkpoints, beside the one after each epoch; 0 writes one after each update."""
    keep_checkpoints: Annotated[int, AT_LEAST_1] = 2
    """Number of checkpoints to keep, the newest ones; the best is kept besides."""
    tracker: tuple[str, ...] = ()
    """Trackers to log to as well: tensorboard, trackio, wandb."""
    push: str | None = None
    """Repository org/name on the Hub to publish the finished model to."""
    eval_only: Annotated[bool, SWITCH] = False
    """Evaluate the model as it is on the validation split (or the only split), and train nothing."""
    restrict_classes: Annotated[bool, SWITCH] = False
    """Evaluate among the classes of the dataset alone: outputs of the model for other classes do not count. By default
    they do, so that an image may be taken for a class that the dataset lacks."""
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
    machine: MachineSettings = field(default_factory=MachineSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

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
    """The phases of a run in order, each by its name ('probe' or 'everything') with its settings; none to evaluate."""
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
            precise_bn_images=0,
            **{**RECIPES['probe'](), 'epochs': s.head_epochs, 'learning_rate': s.head_learning_rate},
        )
        return [('probe', replace(settings, optimization=first)), ('everything', settings)]
    return [('probe' if s.recipe == 'probe' else 'everything', settings)]


# Option of timm's train.py, of the examples of transformers or of torchvision -> the option here.
KNOWN_ELSEWHERE = {
    **dict.fromkeys(('train-dir', 'data-dir', 'data', 'data-path', 'dataset-name', 'train-file'), '--dataset'),
    **dict.fromkeys(('output-dir', 'out', 'experiment'), '--output'),
    **dict.fromkeys(('model-name-or-path', 'arch', 'initial-checkpoint'), '--model'),
    **dict.fromkeys(('lr', 'base-lr'), '--learning-rate'),
    **dict.fromkeys(('num-train-epochs', 'num-epochs'), '--epochs'),
    **dict.fromkeys(('per-device-train-batch-size', 'bs', 'b'), '--batch-size'),
    **dict.fromkeys(('gradient-accumulation-steps', 'grad-accum-steps'), '--accumulation'),
    **dict.fromkeys(('img-size', 'input-size', 'imgsz', 'size'), '--image-size'),
    **dict.fromkeys(('opt', 'optim'), '--optimizer'),
    **dict.fromkeys(('wd',), '--weight-decay'),
    **dict.fromkeys(('sched', 'lr-scheduler-type', 'lr-scheduler'), '--schedule'),
    **dict.fromkeys(('warmup-ratio', 'warmup-steps'), '--warmup-epochs'),
    **dict.fromkeys(('smoothing', 'label-smoothing-factor'), '--label-smoothing'),
    **dict.fromkeys(('drop', 'dropout'), '--drop-rate'),
    **dict.fromkeys(('drop-path',), '--drop-path-rate'),
    **dict.fromkeys(('aa',), '--auto-augment'),
    **dict.fromkeys(('reprob', 'random-erase'), '--random-erasing'),
    **dict.fromkeys(('hflip', 'horizontal-flip'), '--flip'),
    **dict.fromkeys(('vflip',), '--vertical-flip'),
    **dict.fromkeys(('amp', 'fp16', 'bf16'), '--mixed-precision'),
    **dict.fromkeys(('model-ema', 'model-ema-decay', 'ema'), '--ema-decay'),
    **dict.fromkeys(('num-workers', 'dataloader-num-workers', 'j'), '--workers'),
    **dict.fromkeys(('train-val-split', 'val-split', 'validation-split-percentage'), '--validation-share'),
    **dict.fromkeys(('validation-dir', 'val-dir'), '--validation-split'),
    **dict.fromkeys(('image-column-name',), '--image-column'),
    **dict.fromkeys(('label-column-name',), '--label-column'),
    **dict.fromkeys(('max-grad-norm', 'clip-norm'), '--clip-grad'),
    **dict.fromkeys(('resume', 'resume-from-checkpoint', 'overwrite-output-dir'), '--output'),
    **dict.fromkeys(('push-to-hub', 'hub-model-id'), '--push'),
    **dict.fromkeys(('evaluate', 'do-eval', 'eval'), '--eval-only'),
    **dict.fromkeys(('report-to', 'log-wandb'), '--tracker'),
}


def _check_names(tokens: Sequence[str], found: dict[str, Any]) -> None:
    """Raises a SettingsError for a missing dataset, and for options that have another name here."""
    names = [token.partition('=')[0].lstrip('-').replace('_', '-') for token in tokens if token.startswith('-')]
    if {'help', 'h', 'version'} & {*names}:
        return
    for name in names:
        if name in KNOWN_ELSEWHERE:
            raise SettingsError(f'--{name} is called {KNOWN_ELSEWHERE[name]} here. --help says what it takes.')
    if 'dataset' not in names and 'dataset' not in found:
        first = tokens[0] if tokens and not tokens[0].startswith('-') else 'FOLDER'
        raise SettingsError(
            f'--dataset is required: a folder of photos, a table, or a name on the Hub (--dataset {first}).'
        )


def with_recipe(tokens: Sequence[str], config: Path | None) -> list[Any]:
    """Where cyclopts finds the settings that the command line does not give.

    Args:
        tokens: The command line.
        config: YAML file with settings.

    Returns:
        The settings of the file, and after them those of the recipe that the command line or the file names.

    Raises:
        SettingsError: The file cannot be read, there is no dataset, or an option has another name here.
    """
    found: dict[str, Any] = {}
    if config:
        try:
            found = yaml.safe_load(config.read_text(encoding='utf-8'))
        except (OSError, yaml.YAMLError) as e:
            raise SettingsError(f'{config} cannot be read ({e}).') from e
        if not isinstance(found, dict):
            raise SettingsError(f'{config} holds no settings.')
    named = [
        token.partition('=')[2] or following
        for token, following in zip(tokens, [*tokens[1:], ''])
        if token.partition('=')[0] == '--recipe'
    ]
    _check_names(tokens, found)
    recipe = (named or [found.get('recipe', Optimization.recipe)])[-1]
    values = {name: value for name, value in found.items() if value is not None and value != {} and value != []}
    presets = RECIPES[recipe]() if recipe in RECIPES else {}
    return [
        cyclopts.config.Dict(values, source=str(config), use_commands_as_keys=False),
        cyclopts.config.Dict(presets, source=f'the recipe {recipe}', use_commands_as_keys=False),
    ]
