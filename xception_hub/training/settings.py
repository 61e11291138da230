"""All settings of finetune.py. Its command line and its YAML files are made from these classes."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import yaml
from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

from ..data.data_settings import AT_LEAST_1, DataSettings
from ..errors import SettingsError
from .recipes import RECIPES

POSITIVE, SHARE = (Parameter(validator=Number(**bounds)) for bounds in (dict(gt=0), dict(gte=0, lt=1)))
NOT_NEGATIVE = Parameter(validator=Number(gte=0))
SWITCH = Parameter(negative='')  # a flag without its --no-... counterpart


def literal(type_: Any, tokens: Sequence[Token]) -> Any:
    """Converts the text of --model-args.X: a Python literal (0.5, 16, False, [8, 8]) if it is one, else the text."""
    text = tokens[0].value
    try:
        return ast.literal_eval({'true': 'True', 'false': 'False', 'null': 'None'}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def name_or_directory(type_: Any, tokens: Sequence[Token]) -> str:
    """Converts the text of --model: that of a directory to local-dir:DIR, as timm names it."""
    text = tokens[0].value
    return f'local-dir:{text}' if Path(text).is_dir() else text


Choices = dict[str, Annotated[Any, Parameter(converter=literal, n_tokens=1)]]


def group(name: str, index: int) -> Callable[[type], type]:
    """Makes one box of --help from the settings of a class."""
    return Parameter(name='*', group=Group(name, sort_key=index), negative_iterable='')


@group('Model', 2)
@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    model: Annotated[str, Parameter(converter=name_or_directory)] = 'xception_paper'
    """Model to train: a directory that finetune or convert wrote, or what timm.create_model takes (a name,
    hf-hub:org/name or local-dir:DIR)."""
    pretrained: bool = True
    """Start from pretrained weights."""
    model_args: Choices = field(default_factory=dict)
    """Further arguments of the model, for example --model-args.bn_eps 1e-5."""
    image_size: Annotated[int | None, AT_LEAST_1] = None
    """Height and width of the images in pixels. The default is the model's own size."""
    drop_rate: Annotated[float, SHARE] = 0.0
    """Probability of dropout before the classifier, from 0 to below 1."""
    drop_path_rate: Annotated[float, SHARE] = 0.0
    """Probability of skipping the last residual block in training. It is lower for earlier blocks."""


@group('Optimization', 3)
@dataclass(frozen=True, kw_only=True)
class Optimization:
    recipe: Literal['probe', 'transfer', 'full', 'paper-imagenet', 'paper-jft'] = 'transfer'
    """Recipe, which sets the defaults of the other settings. probe trains a new classifier on the frozen network.
    transfer does the same, then trains the whole network slowly. full trains the whole network from the start.
    paper-imagenet and paper-jft train from random weights as the paper does."""
    epochs: Annotated[int, AT_LEAST_1] = 10
    """Number of passes over the training images."""
    head_epochs: Annotated[int, AT_LEAST_1] = 100
    """Number of passes over the training images while only the classifier trains (recipe transfer)."""
    head_learning_rate: Annotated[float, POSITIVE] = 3e-3
    """Learning rate while only the classifier trains (recipe transfer)."""
    batch_size: Annotated[int, AT_LEAST_1] = 32
    """Images in one step of one process. An update takes batch size x accumulation x number of processes images."""
    accumulation: Annotated[int, AT_LEAST_1] = 1
    """Number of steps whose gradients are summed for one update of the weights."""
    optimizer: str = 'adamw'
    """Optimizer, by its name in timm."""
    optimizer_args: Choices = field(default_factory=dict)
    """Further arguments of the optimizer, for example --optimizer-args.eps 1e-3."""
    learning_rate: Annotated[float, POSITIVE] = 1e-3
    """Highest learning rate of the schedule. It is not scaled by the batch size or the number of processes."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight decay. It does not apply to biases and normalization layers."""
    momentum: Annotated[float, SHARE] = 0.9
    """Momentum, for optimizers that have one."""
    layer_decay: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1))] = None
    """Factor of the learning rate from each layer to the one before it. By default all layers have the same rate."""
    schedule: Literal['constant', 'cosine', 'step'] = 'cosine'
    """Schedule of the learning rate: constant, cosine (down to 0) or step (lowered at each decay)."""
    warmup_epochs: Annotated[float, NOT_NEGATIVE] = 0.0
    """Epochs in which the learning rate rises from a hundredth to its highest value."""
    decay_rate: Annotated[float, POSITIVE] = 0.1
    """Factor by which the schedule step multiplies the learning rate at each decay."""
    decay_epochs: Annotated[float, POSITIVE] = 30.0
    """Epochs between two decays of the learning rate in the schedule step."""
    decay_images: Annotated[int | None, AT_LEAST_1] = None
    """Images between two decays of the learning rate in the schedule step. It replaces --decay-epochs."""
    clip_grad: Annotated[float | None, POSITIVE] = None
    """Largest norm of the gradient. Larger gradients are scaled down. By default gradients are not clipped."""
    batch_norm: Literal['frozen', 'train'] = 'frozen'
    """Statistics of batch normalization: frozen keeps the moving statistics, train updates them."""
    precise_bn_images: Annotated[int, NOT_NEGATIVE] = 0
    """Number of training images from which statistics of batch normalization are computed before each evaluation. 0
    keeps the moving statistics, which lag behind the weights."""
    label_smoothing: Annotated[float, SHARE] = 0.0
    """Share of each label that is spread over all classes."""
    class_weights: bool = False
    """Weight the loss so that all classes count the same, however many images they have."""
    balanced_sampling: bool = False
    """Sample all classes equally often. Images of rare classes occur several times per epoch."""
    ema_decay: Annotated[float | None, SHARE] = None
    """Decay per update of a moving average of the weights, which is evaluated and saved instead of the last weights.
    By default no average is kept."""
    metric: str = 'top1'
    """Metric that chooses the best epoch: top1, top5, macro_f1, macro_precision, macro_recall, loss or
    calibration_error. Images with several labels also have micro_f1, mean_average_precision and map_at_100."""
    early_stopping: Annotated[int | None, AT_LEAST_1] = None
    """Number of epochs without improvement after which a phase ends. By default all epochs are trained."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Random seed of the split, the order, augmentation and dropout."""


@group('Augmentation', 4)
@dataclass(frozen=True, kw_only=True)
class Augmentation:
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest share of the image area in a random crop. 1 1 keeps the whole image."""
    flip: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0
    """Probability of a flip from left to right."""
    vertical_flip: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0
    """Probability of a flip upside down."""
    color_jitter: Annotated[float, NOT_NEGATIVE] = 0.0
    """Largest relative change of brightness, contrast and saturation. 0 changes nothing."""
    auto_augment: str | None = None
    """Augmentation policy, by its name in timm, such as rand-m7-mstd0.5-inc1. By default there is none."""
    random_erasing: Annotated[float, SHARE] = 0.0
    """Probability of erasing a random rectangle of an image."""
    mixup: Annotated[float, NOT_NEGATIVE] = 0.0
    """Alpha of mixup, which blends pairs of images and their labels. 0 turns it off."""
    cutmix: Annotated[float, NOT_NEGATIVE] = 0.0
    """Alpha of CutMix, which pastes a rectangle of one image into another. 0 turns it off."""

    def of_transform(self) -> dict[str, Any]:
        """The arguments of `Transforms.training`."""
        return dict(
            scale=self.crop_scale,
            hflip=self.flip,
            vflip=self.vertical_flip,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment,
            re_prob=self.random_erasing,
        )


@group('Machine', 5)
@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    mixed_precision: Literal['no', 'bf16', 'fp16'] | None = None
    """Precision of the computation; no is float32. The default is the choice of `accelerate config`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. They take a third of the memory; a step takes up to twice as long."""
    compile: bool = False
    """Compile the network with torch.compile."""
    channels_last: bool = True
    """Keep images and weights in the memory format channels_last, which is faster for convolutions."""
    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Processes that decode images, per training process. The default is up to 8 on a GPU and none on a CPU."""
    feature_cache: Path | None = None
    """Folder for features of frozen networks. The default is a folder in the cache of the Hugging Face libraries."""


@group('Output', 6)
@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    output: Annotated[Path, Parameter(alias='-o')] = Path('finetuned')
    """Directory of the run. After training it is the model directory and contains the report."""
    checkpoint_minutes: Annotated[float, NOT_NEGATIVE] = 10.0
    """Minutes between two checkpoints within an epoch. 0 writes one after each update. Each epoch ends with one."""
    keep_checkpoints: Annotated[int, AT_LEAST_1] = 2
    """Number of newest checkpoints to keep. The best weights are always kept."""
    tracker: tuple[str, ...] = ()
    """Experiment trackers to log to: tensorboard, trackio, wandb."""
    push: str | None = None
    """Repository org/name on the Hub to publish the finished model to."""
    eval_only: Annotated[bool, SWITCH] = False
    """Evaluate the model on the validation split (or the only split) without training."""
    restrict_classes: Annotated[bool, SWITCH] = False
    """Ignore the model's outputs for classes that the dataset lacks. By default they count in the evaluation, so that a
    prediction of such a class is an error."""
    dry_run: Annotated[bool, SWITCH] = False
    """Scan the data and measure one batch, without writing anything."""


@Parameter(name='*')
@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run. A recipe sets their defaults; the command line and the YAML file replace them."""

    data: DataSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    optimization: Optimization = field(default_factory=Optimization)
    augmentation: Augmentation = field(default_factory=Augmentation)
    machine: MachineSettings = field(default_factory=MachineSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def flat(self) -> dict[str, Any]:
        """Returns name -> value, in types that YAML can express."""
        merged = {name: value for part in asdict(self).values() for name, value in part.items()}
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in merged.items()
        }


# Settings that do not affect the result, so that a run may go on with other ones.
RESUME_MAY_CHANGE = frozenset(
    {'output', 'checkpoint_minutes', 'keep_checkpoints', 'tracker', 'push', 'dry_run', 'workers', 'feature_cache'}
    | {'dataset', 'image_folder', 'validation_table'}  # places of data; their digest has to stay
)
# Settings that a first phase, which trains only the classifier, has in common with the second one.
OF_BOTH_PHASES = ('label_smoothing', 'class_weights', 'balanced_sampling', 'metric', 'early_stopping', 'seed')


def phases(s: Optimization) -> list[tuple[str, Optimization]]:
    """Returns name ('probe' or 'everything') and settings of each phase of a training, in order."""
    if s.recipe != 'transfer':
        return [('probe' if s.recipe == 'probe' else 'everything', s)]
    shared = {name: getattr(s, name) for name in OF_BOTH_PHASES}
    probe = {**RECIPES['probe'], 'epochs': s.head_epochs, 'learning_rate': s.head_learning_rate}
    return [('probe', Optimization(**probe, **shared)), ('everything', s)]


def with_recipe(tokens: Sequence[str], config: Path | None) -> list[Any]:
    """Returns what cyclopts takes the settings from that the command line does not give.

    Args:
        tokens: The command line.
        config: YAML file with settings.

    Returns:
        The settings of the file, then those of the recipe that the command line or the file names.

    Raises:
        SettingsError: The file cannot be read, or no dataset is named.
    """
    found: dict[str, Any] = {}
    if config:
        try:
            found = yaml.safe_load(config.read_text(encoding='utf-8'))
        except (OSError, yaml.YAMLError) as e:
            raise SettingsError(f'{config} cannot be read ({e}).') from e
        if not isinstance(found, dict):
            raise SettingsError(f'{config} holds no settings.')
    values = {name: value for name, value in found.items() if value is not None and value != {} and value != []}
    options = [token.partition('=')[0] for token in tokens]
    if not {'--dataset', '--help', '-h'} & {*options} and 'dataset' not in values:
        first = tokens[0] if tokens and not tokens[0].startswith('-') else 'FOLDER'
        raise SettingsError(
            f'--dataset is required: a folder of photos, a table, or a name on the Hub (--dataset {first}).'
        )
    named = [
        token.partition('=')[2] or following
        for token, following in zip(tokens, [*tokens[1:], ''])
        if token.partition('=')[0] == '--recipe'
    ]
    recipe = (named or [values.get('recipe', Optimization.recipe)])[-1]
    return [
        cyclopts.config.Dict(values, source=str(config), use_commands_as_keys=False),
        cyclopts.config.Dict(RECIPES.get(recipe, {}), source=f'the recipe {recipe}', use_commands_as_keys=False),
    ]
