"""Published parameters of the fifteen families: three tables, for images of about 32, 64 and 224 pixels a side.

A table is chosen by the shorter side of the image (up to 48: "32"; up to 128: "64"; else "224"), and every *length* in
it (blur radii and widths, motion, glass distance, snow streaks) is multiplied by side / table side; intensities are
not.  Values are those of CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C (Hendrycks and Dietterich, 2019).
"""

from __future__ import annotations

from typing import Any, Literal

TableName = Literal["32", "64", "224"]
#: Parameters are written as published: 1 or 1.5.
Number = float | int
SIDES: dict[TableName, int] = {"32": 32, "64": 64, "224": 224}
#: Share of its size at which a photograph of frost is used.
TEXTURE_SCALES: dict[TableName, float] = {"32": 0.2, "64": 0.3, "224": 1.0}
LARGEST: tuple[tuple[int, TableName], ...] = ((48, "32"), (128, "64"))


def table_for(side: int) -> TableName:
    """The table made for images whose shorter side is `side` pixels."""
    return next((name for largest, name in LARGEST if side <= largest), "224")


_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
#: Enlargements whose mean is a zoom blur: (how many, step), from 1 upwards; the counts are what the published ranges
#: come to in floating point, one more than meant where the end is included.
_ZOOM = ((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01))

#: family -> table -> five severities
PARAMETERS: dict[str, dict[TableName, tuple[Any, ...]]] = {
    "gaussian_noise": {  # standard deviation
        "32": (0.04, 0.06, 0.08, 0.09, 0.10),
        "64": (0.04, 0.08, 0.12, 0.15, 0.18),
        "224": (0.08, 0.12, 0.18, 0.26, 0.38),
    },
    "shot_noise": {  # photons at full brightness
        "32": (500, 250, 100, 75, 50),
        "64": (250, 100, 50, 30, 15),
        "224": (60, 25, 12, 5, 3),
    },
    "impulse_noise": {  # share of values replaced
        "32": (0.01, 0.02, 0.03, 0.05, 0.07),
        "64": (0.01, 0.02, 0.05, 0.08, 0.14),
        "224": (0.03, 0.06, 0.09, 0.17, 0.27),
    },
    "defocus_blur": {  # radius of the disk, width of its smoothing
        "32": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "64": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        "224": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    "glass_blur": {  # width of the blur, reach of a swap, rounds
        "32": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "64": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        "224": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    "motion_blur": {  # radius, width
        "32": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "64": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        "224": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "zoom_blur": {
        "32": _ZOOM,
        "64": _ZOOM,
        "224": ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
    },
    "snow": {  # mean, deviation, enlargement and threshold of the flakes; radius and width of their streaks; share kept
        "32": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "64": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        "224": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    "frost": {  # share of the image kept, share of the texture added
        "32": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "64": ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        "224": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    },
    "fog": {  # weight, decay of the plasma
        "32": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "64": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        "224": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    "brightness": {"32": (0.05, 0.1, 0.15, 0.2, 0.3), "64": _BRIGHTNESS, "224": _BRIGHTNESS},
    "contrast": {"32": (0.75, 0.5, 0.4, 0.3, 0.15), "64": _CONTRAST, "224": _CONTRAST},
    "elastic_transform": {  # strength, smoothness and affine part, as fractions of the side
        "32": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        "64": ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        "224": ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    },
    "pixelate": {  # share of the pixels of a side
        "32": (0.95, 0.9, 0.85, 0.75, 0.65),
        "64": (0.9, 0.8, 0.7, 0.6, 0.5),
        "224": (0.6, 0.5, 0.4, 0.3, 0.25),
    },
    "jpeg_compression": {  # quality
        "32": (80, 65, 58, 50, 40),
        "64": (65, 58, 50, 40, 25),
        "224": (25, 18, 15, 10, 7),
    },
}
