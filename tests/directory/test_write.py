"""What others read in a directory's config.json."""

import json
from pathlib import Path

from random_model import images, random_model

from xception_hub.directory.write import write_model


def test_size_of_the_last_map(tmp_path: Path) -> None:
    """fastai takes a network for one that pools nothing where `pool_size` is missing, and pools twice."""
    model = random_model(width_multiplier=0.1875)
    write_model(tmp_path, model, {}, {}, dict(input_size=(3, 75, 98)))
    cfg = json.loads((tmp_path / 'config.json').read_text())['pretrained_cfg']
    assert cfg['pool_size'] == [*model.forward_features(images(75, 98)).shape[2:]] == [3, 3]
