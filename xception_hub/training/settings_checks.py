"""All checks of settings: what is impossible, or impossible together, is refused before any long computation."""

import warnings
from inspect import signature

from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from timm.optim import get_optimizer_class

from ..data.labelled import Data
from ..errors import ModelError, SettingsError, listed
from ..timing import lacks_bf16
from .metrics import figure_names
from .optimization import NOT_AN_OPTIMIZER
from .settings import Augmentation, Optimization, OutputSettings, Settings

LOOKAHEAD = 'lookahead_'  # prefix of timm's names


def check(settings: Settings, accelerator: Accelerator) -> None:
    """Checks settings among themselves, and against the machine and its packages.

    Raises:
        SettingsError: Settings are impossible together, or on this machine.
        ModelError: timm has no optimizer of the name, or it does not take the arguments.
    """
    s, data, output = settings.optimization, settings.data, settings.output
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise SettingsError(f'{accelerator.distributed_type} is not supported. Choose plain data parallelism.')
    on_cpu, precision = accelerator.device.type == 'cpu', accelerator.mixed_precision
    if precision == 'fp16' and on_cpu:  # accelerate would ignore it
        raise SettingsError('fp16 needs a GPU. On a CPU choose --mixed-precision bf16 or no.')
    if precision == 'bf16' and on_cpu and lacks_bf16(accelerator.device):
        warnings.warn('This CPU has no arithmetic for bf16, which is many times slower than float32.', stacklevel=2)
    available = [str(tracker) for tracker in get_available_trackers()]
    for tracker in output.tracker:
        if tracker not in available:  # accelerate would ignore it
            raise SettingsError(
                f'The tracker {tracker!r} is not installed (pip install {tracker}). Available: {listed(available)}.'
            )
    if output.restrict_classes and not output.eval_only:
        raise SettingsError('--restrict-classes belongs to --eval-only: a training knows no other classes.')
    if s.recipe == 'probe' and settings.augmentation != Augmentation():
        raise SettingsError(
            'The recipe probe computes the features of each image once, so it cannot augment images. Choose the recipe '
            'transfer or full.'
        )
    if data.folds and data.fold not in {str(fold + 1) for fold in range(data.folds)}:
        raise SettingsError(
            f'--fold {data.fold} is none of the {data.folds} folds. Name one: --fold 1 to --fold {data.folds}.'
        )
    if s.precise_bn_images and s.batch_norm == 'frozen':
        warnings.warn('--precise-bn-images has no effect: no batch normalization is trained.', stacklevel=2)
    if s.balanced_sampling and data.streaming:
        raise SettingsError(
            'Balanced sampling needs images in any order, which a stream cannot provide. Replace '
            '--balanced-sampling by --class-weights, or leave out --streaming.'
        )
    try:
        signature(get_optimizer_class(s.optimizer.lower().removeprefix(LOOKAHEAD))).bind_partial(**s.optimizer_args)
    except (*NOT_AN_OPTIMIZER, ImportError) as e:
        raise ModelError(f'The optimizer {s.optimizer!r} cannot be made: {e}.') from e


def check_with(data: Data, s: Optimization, output: OutputSettings) -> None:
    """Checks settings against the classes of a dataset.

    Raises:
        SettingsError: The metric does not exist for them, or a single class would be left.
    """
    figures = figure_names(len(data.class_names), data.multi_label)
    if not output.eval_only and s.metric not in figures:
        raise SettingsError(f'--metric {s.metric} does not exist for this dataset. It has: {", ".join(figures)}.')
    if output.restrict_classes and len(data.class_names) < 2:
        raise SettingsError(
            f'--restrict-classes leaves the single class {data.class_names[0]!r}, of which every image would be. '
            f'Leave it out.'
        )
