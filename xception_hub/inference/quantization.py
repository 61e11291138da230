"""Quantization of weights and activations to int8, with ranges from photos."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def by_nncf(model: Any, calibration: Sequence[Tensor], name: str | None = None) -> Any:
    """Quantizes an ONNX or OpenVINO model to int8.

    Args:
        model: The model in float32.
        calibration: Images [1, C, H, W].
        name: Name of the input of an ONNX model; None for OpenVINO.
    """
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    nncf.set_log_level('ERROR')
    images = [{name: x.numpy()} if name else x.numpy() for x in calibration]
    # One range for all channels: ranges per channel were far off on photos unlike the calibration photos (see
    # docs/export.md), and ONNX Runtime does not support them.
    activations = QuantizationParameters(per_channel=False)
    return nncf.quantize(
        model,
        nncf.Dataset(images),
        subset_size=len(images),
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_quantization_params=activations),
    )
