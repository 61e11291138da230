"""A pytest plugin that points timm's own tests/test_models.py, unmodified, at models of this package.

    TIMM_PLUGIN_MODELS=xception_paper,xception_paper_fc python -m pytest -p timm_plugin test_models.py

Tests that timm runs on all models run on those alone; `HARD_CODED` lists tests that timm runs on chosen models and
that run on them instead. Everything else is deselected. A network without pretrained weights has a quarter of the width
there, and narrow layers before its classifier: these tests depend on neither.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import timm

import xception_hub  # noqa: F401  registers the models

MODULE = 'xception_paper'
MODELS = os.environ.get('TIMM_PLUGIN_MODELS', MODULE).split(',')  # of `timm.list_models(module=MODULE)`
LEFT_OUT = {  # test -> a model that cannot pass it
    'test_reset_classifier_keeps_pool': 'xception_paper_no_residual',  # its untrained features fade: test_variants.py
    # TorchScript knows no super(); it knows `features_only`, see test_pyramid.py
    'test_feature_getter_stage_ends_torchscript': 'xception_paper_pyramid',
}
FC_WIDTHS = (32, 16)


def models_of(test: str) -> list[str]:
    return [name for name in MODELS if name != LEFT_OUT.get(test)]


# Test -> the values of its parameters, which replace those in timm's file.
HARD_CODED: dict[str, dict[str, list[Any]]] = {
    'test_reset_classifier_keeps_pool': {},
    'test_features_only_grad_checkpointing_backward': {},
    'test_feature_hook_net_grad_checkpointing_order': {},  # names 'xception41' in its body
    'test_model_features_output_stride': {'output_stride': [8, 16]},
    'test_feature_getter_stage_ends_torchscript': {},
    'test_prune_intermediate_layers_params_used': {},
    'test_head_hidden_size': {'model_kwargs': [{}, {'fc_widths': FC_WIDTHS}]},
    'test_forward_after_prune_intermediate_layers': {},
    'test_prune_intermediate_layers_last_feature': {'stop_early_final': [True]},
    'test_prune_to_stem_feature': {},
}

# Arguments that these tests' models need on top.
#   min_img_size: they run on 64x64 pixels, but the limit of Keras, which is our default, is 71.
#   out_indices: the test asks for maps of exactly input / reduction. The stem's two convolutions have no padding, as in
#       Keras, so that the first two maps are smaller (29 instead of 32 for 64 pixels); the others are as demanded.
SMALL = dict(min_img_size=64)
MODEL_ARGS: dict[str, dict[str, Any]] = {
    'test_reset_classifier_keeps_pool': SMALL,
    'test_features_only_grad_checkpointing_backward': SMALL,
    'test_feature_hook_net_grad_checkpointing_order': SMALL,
    'test_model_features_output_stride': dict(SMALL, out_indices=(2, 3, 4)),
    'test_head_hidden_size': SMALL,
    'test_prune_to_stem_feature': SMALL,
}


def only_ours(list_models: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Wraps timm's listing: only those models, which are also in any list of modules."""

    @functools.wraps(list_models)
    def listing(*args: Any, **kwargs: Any) -> list[str]:
        if kwargs.get('module'):
            kwargs['module'] = [*kwargs['module'], MODULE]
        return [name for name in list_models(*args, **kwargs) if name.split('.')[0] in MODELS]

    return listing


def narrow(create_model: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create_model)
    def create(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        widths = {} if pretrained else dict(width_multiplier=0.25)
        if 'fc' in name:
            kwargs.setdefault('fc_widths', FC_WIDTHS)
        return create_model(name, pretrained=pretrained, **widths, **kwargs)

    return create


def pytest_configure() -> None:
    """Before timm's file is imported, which lists models while it is."""
    timm.list_models, timm.list_pretrained = only_ours(timm.list_models), only_ours(timm.list_pretrained)
    timm.create_model = narrow(timm.create_model)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Replaces the `parametrize` marks of the tests in `HARD_CODED`."""
    test = metafunc.definition
    if test.name in HARD_CODED:
        test.own_markers = [mark for mark in test.own_markers if mark.name != 'parametrize']
        if 'model_name' in metafunc.fixturenames:
            metafunc.parametrize('model_name', models_of(test.name))
        for name, values in HARD_CODED[test.name].items():
            metafunc.parametrize(name, values)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what is not about those models, such as timm's parametrised tests whose lists are now empty."""

    def is_ours(item: Any) -> bool:
        params = item.callspec.params if hasattr(item, 'callspec') else {}
        return item.originalname in HARD_CODED or str(params.get('model_name')).split('.')[0] in MODELS

    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = [item for item in items if is_ours(item)]


@pytest.fixture(autouse=True)
def model_args(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tests of `HARD_CODED`, `create_model` creates one of those models, with `MODEL_ARGS`."""
    test = request.function.__name__
    if test in HARD_CODED:

        def create_model(name: str, **kwargs: Any) -> Any:
            name = name if name in MODELS else MODELS[0]
            return timm.create_model(name, **MODEL_ARGS.get(test, {}), **kwargs)

        monkeypatch.setattr(request.module, 'create_model', create_model)
