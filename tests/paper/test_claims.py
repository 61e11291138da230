"""The table of the paper's sentences: what it says that is counted is counted, and the page has its rows."""

import pytest
import torch
from conftest import ROOT

from xception_hub.paper import checks, quoted
from xception_hub.paper.claims import HOW, SENTENCES
from xception_hub.training import recipes

PAGE = (ROOT / 'docs' / 'the_paper.md').read_text()


@pytest.fixture(scope='module')
def checked() -> dict[str, checks.Claim]:
    return {claim.claim: claim for claim in checks.check(checks.count())}


def test_what_is_counted_has_a_check(checked: dict[str, checks.Claim]) -> None:
    shown = [sentence.check for sentence in SENTENCES if sentence.check]
    assert all(checked[name].holds for name in shown)
    assert all(sentence.check for sentence in SENTENCES if sentence.how == 'counted')
    of_others = ('Keras: ', 'timm: ', 'sum of the modules')  # what the paper does not state
    assert {name for name in checked if not name.startswith(of_others)} == set(shown)


def test_the_page_has_each_sentence() -> None:
    rows = [f'| {sentence.place} | {sentence.text} | {sentence.how} |' for sentence in SENTENCES]
    assert '\n'.join(rows) in PAGE
    assert all(f'*{how}*: {meaning}' in PAGE for how, meaning in HOW.items())


def test_recipes_are_those_of_the_paper() -> None:
    """What is called reproduced of sections 4.2 and 4.3."""
    imagenet, jft = recipes.paper_imagenet(), recipes.paper_jft()
    assert imagenet['optimizer'] == 'sgd' and jft['optimizer'] == 'rmsproptf'
    for recipe in (imagenet, jft):
        assert recipe['momentum'] == quoted.MOMENTUM and recipe['weight_decay'] == quoted.WEIGHT_DECAY['Xception']
        assert 0 < recipe['ema_decay'] < 1
    rates = ('learning_rate', 'decay_rate')
    assert [imagenet[name] for name in (*rates, 'decay_epochs', 'drop_rate')] == [
        quoted.LEARNING_RATE, quoted.DECAY_RATE, quoted.DECAY_EPOCHS, quoted.DROPOUT,
    ]  # fmt: skip
    assert [jft[name] for name in (*rates, 'decay_images', 'drop_rate')] == [
        quoted.JFT_LEARNING_RATE, quoted.JFT_DECAY_RATE, quoted.JFT_DECAY_IMAGES, 0,
    ]  # fmt: skip


def test_another_function_is_no_equivalence(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(module: torch.nn.Module) -> torch.nn.Sequential:
        merged = merge(module)
        merged[0].conv_pw.weight.data[0] += 1e-9
        return merged

    merge = checks.merge_towers
    monkeypatch.setattr(checks, 'merge_towers', damaged)
    assert [claim.holds for claim in checks.equivalences()] == [False, True]
