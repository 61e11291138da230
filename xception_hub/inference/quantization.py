"""Weights and activations in int8, whose ranges are those that photos lead to."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def by_nncf(model: Any, calibration: Sequence[Tensor], name: str | None = None) -> Any:
    """An ONNX or OpenVINO model in int8.

    Args:
        model: The model in float32.
        calibration: Images [1, C, H, W].
        name: Name of the input; None if the runtime takes images by their place.
    """
    import nncf

    images = [{name: x.numpy()} if name else x.numpy() for x in calibration]
    return nncf.quantize(model, nncf.Dataset(images), preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
