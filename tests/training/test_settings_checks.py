"""Settings that are impossible, or impossible together: refused before any work, with a way out."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType

from xception_hub.errors import ModelError, SettingsError
from xception_hub.training import settings_checks
from xception_hub.training.settings import Augmentation, DataSettings, Optimization, OutputSettings, Settings
from xception_hub.training.settings_checks import check, check_with

CLASSES: Any = SimpleNamespace(class_names=['cat', 'dog'], multi_label=False)


def settings_of(data: Any = (), optimization: Any = (), output: Any = ()) -> Settings:
    return Settings(
        data=DataSettings(dataset='x', **dict(data)),
        optimization=Optimization(**dict(optimization)),
        output=OutputSettings(**dict(output)),
    )


def machine(**facts: Any) -> Any:
    """What a check asks accelerate for."""
    found = dict(distributed_type=DistributedType.NO, device=torch.device('cpu'), mixed_precision='no')
    assert found.keys() <= set(dir(Accelerator))
    return SimpleNamespace(**{**found, **facts})


@pytest.mark.parametrize(
    ('given', 'remedy'),
    [
        (dict(output=dict(tracker=('nothing',))), 'nothing.*pip install nothing'),
        (dict(output=dict(restrict_classes=True)), '--eval-only'),
        (dict(data=dict(folds=3, fold='4')), '--fold 4.*--fold 1 to --fold 3'),
        (dict(data=dict(streaming=True), optimization=dict(balanced_sampling=True)), '--class-weights'),
        (dict(optimization=dict(optimizer='adamn')), 'adamn'),
        (dict(optimization=dict(optimizer_args=dict(wrong=1))), 'wrong'),
    ],
)
def test_refused(given: Any, remedy: str) -> None:
    with pytest.raises((SettingsError, ModelError), match=remedy):
        check(settings_of(**given), machine())


def test_a_probe_does_not_augment() -> None:
    settings = replace(settings_of(optimization=dict(recipe='probe')), augmentation=Augmentation(flip=0.5))
    with pytest.raises(SettingsError, match='recipe transfer or full'):
        check(settings, machine())


@pytest.mark.parametrize('optimizer', ['adamw', 'lookahead_adamw', 'SGD'])
def test_accepted(optimizer: str) -> None:
    check(settings_of(optimization=dict(optimizer=optimizer)), machine())


def test_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor: bf16 without instructions for it, fp16 without a GPU, and batch normalization at rest."""
    settings = settings_of()
    with pytest.raises(SettingsError, match='--mixed-precision bf16 or no'):
        check(settings, machine(mixed_precision='fp16'))
    with pytest.raises(SettingsError, match='data parallelism'):
        check(settings, machine(distributed_type=DistributedType.FSDP))
    for lacks in (False, True):
        monkeypatch.setattr(settings_checks, 'lacks_bf16', lambda _, lacks=lacks: lacks)
        with pytest.warns(UserWarning, match='.') as found:
            check(settings_of(optimization=dict(precise_bn_images=9)), machine(mixed_precision='bf16'))
        assert ['bf16' in str(warning.message) for warning in found] == [True] * lacks + [False]


def test_with_the_classes() -> None:
    check_with(CLASSES, Optimization(), OutputSettings())
    check_with(CLASSES, Optimization(metric='unknown'), OutputSettings(eval_only=True))
    with pytest.raises(SettingsError, match='--metric top5 .*top1, macro_f1.*calibration_error'):
        check_with(CLASSES, Optimization(metric='top5'), OutputSettings())
    with pytest.raises(SettingsError, match='single class.*cat'):
        check_with(
            SimpleNamespace(class_names=['cat'], multi_label=False),  # type: ignore[arg-type]
            Optimization(),
            OutputSettings(eval_only=True, restrict_classes=True),
        )
