"""Files of safetensors are read whole, and into aligned memory."""

import os
import shutil
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from xception_hub.errors import CheckpointError
from xception_hub.weights.checkpoint_files import read_checkpoint


@pytest.fixture(scope='module')
def original(genuine_state_dict: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('original') / 'model.safetensors'
    safetensors.torch.save_file(genuine_state_dict, path)
    return path


def flip(path: Path) -> None:
    """Changes a bit of a tensor in place."""
    with open(path, 'r+b') as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


@pytest.mark.parametrize('mapped', [True, False])
def test_changed_while_it_is_read(mapped: bool, original: Path, tmp_path: Path) -> None:
    """No mixture of two files."""
    path, done = Path(shutil.copy(original, tmp_path)), threading.Event()

    def write() -> None:
        while not done.is_set():
            flip(path)

    def read() -> None:
        for _ in range(100):  # one is enough, unless it is faster than the clock of the file system
            read_checkpoint(path, mapped)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(CheckpointError, match='changed while it was read. Load it again'):
            read()
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize('mapped', [True, False])
def test_matrices_are_aligned(mapped: bool, tmp_path: Path) -> None:
    """As torch's own are: products of matrices round in another way elsewhere."""
    saved = {f'{i}.{shape}': torch.randn(shape) for i in range(9) for shape in ((3,), (5, 7), (2, 3, 1, 1))}
    safetensors.torch.save_file(saved, tmp_path / 'model.safetensors')
    tensors = read_checkpoint(tmp_path / 'model.safetensors', mapped).tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in saved.items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors.values() if tensor.dim() == 2)
