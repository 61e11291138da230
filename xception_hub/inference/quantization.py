"""Weights and activations in int8, whose ranges are those that photos lead to."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def by_nncf(model: Any, calibration: Sequence[Tensor], name: str | None = None) -> Any:
    """An ONNX or OpenVINO model in int8.

    Args:
        model: The model in float32.
        calibration: Images [1, C, H, W].
        name: Name of the input of an ONNX model; None for OpenVINO.
    """
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    nncf.set_log_level('ERROR')
    images = [{name: x.numpy()} if name else x.numpy() for x in calibration]
    # One range for all channels: one for each was far off on photos unlike those of the calibration, see
    # docs/export.md, and ONNX Runtime does not take it.
    activations = QuantizationParameters(per_channel=False)
    return nncf.quantize(
        model,
        nncf.Dataset(images),
        subset_size=len(images),
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_quantization_params=activations),
    )
