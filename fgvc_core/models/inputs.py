"""How a picture has to look to a model."""

from dataclasses import dataclass

Three = tuple[float, float, float]


@dataclass(frozen=True)
class InputSpec:
    """Size and normalisation of a model's pictures.

    Attributes:
        size: Side of the square, in pixels.
        mean: Of red, green and blue in 0..1.
        std: Likewise.
        interpolation: ``bilinear`` or ``bicubic``.
        crop: Side of the centre crop as a share of the resized short side, 0 to 1.
    """

    size: int
    mean: Three = (0.5, 0.5, 0.5)
    std: Three = (0.25, 0.25, 0.25)
    interpolation: str = "bilinear"
    crop: float = 1.0
