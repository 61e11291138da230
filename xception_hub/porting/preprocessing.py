"""How images were prepared for a Keras model, in its terms and in timm's."""

from dataclasses import dataclass
from typing import Any

# Keras' name of an input range -> scale and offset that make it of pixels in 0..255.
INPUT_RANGES: dict[str, tuple[float, float]] = {
    'tf': (1 / 127.5, -1.0),  # -1..1, keras.applications.xception.preprocess_input
    'unit': (1 / 255, 0.0),  # 0..1
    'raw': (1.0, 0.0),  # 0..255
}


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared when the model was trained, which its file mostly doesn't say.

    Attributes:
        input_range: A key of `INPUT_RANGES`: what the Keras model takes.
        image_size: Height and width in pixels.
        interpolation: timm's name of the resampling.
        crop_pct: Share of the resized image's sides that is kept.
        crop_mode: timm's: 'squash' resizes without regard to the aspect ratio, as Keras does; 'center' keeps it.
        rescaling: Scale and offset that the Keras model, or its preprocessor, itself applies to that range.
    """

    input_range: str
    image_size: tuple[int, int]
    interpolation: str
    crop_pct: float = 1.0
    crop_mode: str = 'squash'
    rescaling: tuple[float, float] = (1.0, 0.0)

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and deviation for timm, whose images are in 0..1, with which the network gets what Keras' Xception
        gets."""
        scale, offset = INPUT_RANGES[self.input_range]
        scale, offset = scale * self.rescaling[0], offset * self.rescaling[0] + self.rescaling[1]
        std = 1 / (255 * scale)
        return float(f'{-offset * std:.12g}') + 0.0, float(f'{std:.12g}')

    def pretrained_cfg(self, channels: int) -> dict[str, Any]:
        """The fields of timm's pretrained cfg."""
        mean, std = self.mean_and_std()
        height, width = self.image_size
        return dict(
            input_size=(channels, height, width),
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=(mean,) * channels,
            std=(std,) * channels,
            pool_size=None,
            test_input_size=None,
            license=None,
            origin_url=None,
        )
