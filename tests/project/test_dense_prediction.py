"""The example that teaches a segmentation network and a detector: a few steps of each."""

import os
import re
import subprocess
import sys

import dense_prediction
import pytest
import torch
from conftest import ROOT
from hub_server import HubServer
from port_a_keras_model import Checkpoint


@pytest.mark.parametrize(
    ('command', 'pattern'),
    [
        ('segmentation', r'Mean IoU on 4 photos: (\S+); background everywhere: (\S+)\.$'),
        ('detection', r'Boxes found .*: \d of 4\. Mean loss: (\S+) in .*, (\S+) in the last\.$'),
    ],
)
@pytest.mark.slow
def test_learns(command: str, pattern: str, hub: HubServer, checkpoint: Checkpoint) -> None:
    """Segmentation beats an empty answer, and the detector's loss falls; on the weights of the first source."""
    small = ('--size', '96', '--batch-size', '2', '--steps', '24')
    result = subprocess.run(
        [sys.executable, ROOT / 'examples' / 'dense_prediction.py', command, *small],
        env=dict(os.environ),
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    better, worse = map(float, re.search(pattern, result.stdout).groups())
    assert better > worse


def test_outlines(checkpoint: Checkpoint) -> None:
    """No object is in both tables, and each one's pixels have its class alone."""
    assert not dense_prediction.TRAIN.keys() & dense_prediction.TEST.keys()
    for table in (dense_prediction.TRAIN, dense_prediction.TEST):
        for photo, number in dense_prediction.cut_outs(table, 64):
            image, classes = dense_prediction.tensors(*dense_prediction.labelled(photo, number))
            assert image.shape == (3, 64, 64) and image.abs().max() <= 1
            assert classes.unique().tolist() == [0, number]
            assert 0.02 < (classes > 0).float().mean() < 0.5


def test_mean_iou() -> None:
    expected = torch.tensor([0, 0, 1, 1, 2, 3])
    assert dense_prediction.mean_iou(expected, expected) == 1
    assert dense_prediction.mean_iou(torch.zeros(6).long(), expected) == pytest.approx(2 / 6 / 4)
