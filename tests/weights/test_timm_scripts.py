"""timm's train.py and validate.py with this model: what docs/old_checkpoints.md shows.

The scripts are in timm's repository and in no package: TIMM_SCRIPTS names a folder with both.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from random_model import images

import xception_hub

SCRIPTS = os.environ.get('TIMM_SCRIPTS')
TRAIN, VALIDATE = (
    block.partition('\n```')[0] for block in (ROOT / 'docs' / 'old_checkpoints.md').read_text().split('```sh\n')[1:]
)


@pytest.mark.skipif(not SCRIPTS, reason='TIMM_SCRIPTS names no folder with train.py and validate.py of timm')
@pytest.mark.slow
def test_train_and_validate(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name, shade in (('dark', 40), ('light', 210)):
            folder = tmp_path / 'photos' / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(shade - 30, shade + 30, (96, 96, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}

    def run(command: str, more: str) -> str:
        command = command.replace('xception-hub', f'{sys.executable} -m xception_hub', 1)
        for script in ('train.py', 'validate.py'):
            command = command.replace(f' {script}', f' {SCRIPTS}/{script}')
        done = subprocess.run(
            f'{command} {more}', shell=True, cwd=tmp_path, env=environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    small = '--img-size 96 --workers 0 -b 4 --device cpu'
    run(TRAIN.replace(' --pretrained', ''), f'{small} --epochs 1 --warmup-epochs 0 --no-prefetcher')
    best = tmp_path / 'output' / 'photos' / 'model_best.pth.tar'
    assert 'top1' in run(VALIDATE, f'{small} --no-prefetcher')
    with pytest.warns(UserWarning, match='left out'):
        model = xception_hub.from_checkpoint(best)
    reference = timm.create_model('xception_paper', num_classes=2, checkpoint_path=best).eval()
    with torch.inference_mode():
        assert torch.equal(model(images(96, 96)), reference(images(96, 96)))
