"""Long-wave infrared from the air: scenes with and without fire, gain control, and where it is hot.

Cameras of this kind give 16-bit counts, here hundredths of a kelvin.  Displays and detectors want 8 bits, and how the
range is squeezed decides what can be seen beside a flame: `gain_control` has the two usual ways, both monotone.

`ThermalScene` renders what a drone sees over woodland: ground and canopy of a few degrees' texture, crew of 3 to 8
pixels at 31 to 39 °C, vehicles with a hot engine, trees that hide parts of them; with fire, fronts that saturate the
sensor and flicker, warm burnt ground, spots and embers as large as people, and smoke.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8, UInt16
from scipy import ndimage

from holdfast.core.errors import InputError
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.weather import plasma

KELVIN = 273.15
PERSON, VEHICLE = 0, 1
NAMES = ("person", "vehicle")

Frames = Float[np.ndarray, "n side side"]


@dataclass(frozen=True)
class ThermalFrames:
    """Raw counts, truth in the form of torchvision's detectors, and the flight of every frame (split by it)."""

    raw: UInt16[np.ndarray, "n side side"]
    truth: list[dict[str, np.ndarray]]
    flight: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class ThermalScene:
    """A renderer of aerial infrared frames with exact boxes.

    Parameters
    ----------
    fire : whether something burns.
    side : pixels; a power of two from 32.
    crew, vehicles : most of each in a frame.
    saturation : temperature in °C at which the sensor clips.

    Raises InputError for values outside these.
    """

    fire: bool = False
    side: int = 64
    crew: int = 4
    vehicles: int = 2
    saturation: float = 150.0

    def __post_init__(self) -> None:
        if self.side < 32 or self.side & (self.side - 1):
            raise InputError(f"side must be a power of two of at least 32, got {self.side}")
        if self.crew < 0 or self.vehicles < 0 or self.crew + self.vehicles == 0:
            raise InputError(f"a scene needs crew or vehicles, got {self.crew} and {self.vehicles}")
        if self.saturation <= 60:
            raise InputError(f"a sensor that clips at {self.saturation} °C would not tell fire from engines; above 60")

    def render(self, flights: int, frames: int, generator: np.random.Generator) -> ThermalFrames:
        """`frames` windows along each of `flights` paths, every flight over ground of its own."""
        if flights < 1 or frames < 1:
            raise InputError(f"at least one flight and one frame are needed, got {flights} and {frames}")
        flight = np.repeat(np.arange(flights), frames)
        streams = Streams.of(generator, len(flight))
        heat, canopy = self._ground(flights, frames, generator)
        if self.fire:
            heat = self._burning(heat, streams)
        heat, truth = self._people_and_vehicles(heat, canopy, streams)
        if self.fire:
            heat = self._smoke(heat, streams)
        heat = ndimage.gaussian_filter(heat, (0, 0.6, 0.6)) + 0.08 * streams.normal(self.side, self.side)
        counts = np.round(100 * (np.clip(heat, -40, self.saturation) + KELVIN))
        return ThermalFrames(counts.astype(np.uint16), truth, flight)

    def _ground(
        self, flights: int, frames: int, generator: np.random.Generator
    ) -> tuple[Frames, Bool[np.ndarray, "n side side"]]:
        """Temperatures of ground and trees in °C, and where canopy hides what is below."""
        paths = Streams.of(generator, flights)
        coarse, fine = plasma(2 * self.side, 1.7, paths), plasma(2 * self.side, 1.25, paths)
        woods = plasma(2 * self.side, 1.5, paths)
        level = np.quantile(woods, 0.75, axis=(1, 2), keepdims=True)
        trees = woods > level
        ambient, swing = paths.uniform(low=8.0, high=26.0), paths.uniform(low=4.0, high=10.0)
        ground = ambient[:, None, None] + swing[:, None, None] * (coarse - 0.5) + 2.0 * (fine - 0.5)
        heat = np.where(trees, ground - 2.5 + 4.0 * (fine - 0.5), ground)
        hides = trees & (fine > 0.45)
        corner = np.linspace(0, self.side, frames).astype(np.int64)
        drift = paths.integers(0, self.side, 2)
        rows = (drift[:, :1] + corner[None]) % self.side
        columns = (drift[:, 1:] + corner[None, ::-1]) % self.side
        index = np.arange(self.side)
        at = (
            np.arange(flights)[:, None, None, None],
            rows[..., None, None] + index[:, None],
            columns[..., None, None] + index[None],
        )
        return heat[at].reshape(-1, self.side, self.side), hides[at].reshape(-1, self.side, self.side)

    def _people_and_vehicles(
        self, heat: Frames, canopy: Bool[np.ndarray, "n side side"], streams: Streams
    ) -> tuple[Frames, list[dict[str, np.ndarray]]]:
        """Vehicles, then crew, each drawn where canopy does not hide it; one less than 40% seen is not there, nor one
        that would touch another or what is above 60 °C.
        """
        heat = heat.copy()
        count = len(heat)
        boxes: list[list[np.ndarray]] = [[] for _ in range(count)]
        labels: list[list[int]] = [[] for _ in range(count)]
        crew, vehicles = (streams.integers(0, most + 1) for most in (self.crew, self.vehicles))
        crew = np.where((crew == 0) & (vehicles == 0), min(1, self.crew), crew)
        taken = heat > 60
        for label, slot in [(VEHICLE, i) for i in range(self.vehicles)] + [(PERSON, i) for i in range(self.crew)]:
            wanted = (vehicles if label == VEHICLE else crew) > slot
            shape, added = self._vehicle(streams) if label == VEHICLE else self._person(streams)
            around = ndimage.binary_dilation(shape, np.ones((1, 3, 3), dtype=np.bool_))
            seen = shape & ~canopy
            drawn = wanted & ~(around & taken).any((1, 2)) & (seen.sum((1, 2)) >= 0.4 * shape.sum((1, 2)))
            seen &= drawn[:, None, None]
            taken |= shape & drawn[:, None, None]
            heat = np.where(seen, added(heat), heat)
            for i in np.flatnonzero(drawn):
                rows, columns = np.flatnonzero(shape[i].any(1)), np.flatnonzero(shape[i].any(0))
                boxes[i].append(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64))
                labels[i].append(label)
        truth = [
            {"boxes": np.array(b).reshape(-1, 4), "labels": np.array(k, dtype=np.int64)}
            for b, k in zip(boxes, labels, strict=True)
        ]
        return heat, truth

    def _person(self, streams: Streams) -> tuple[Bool[np.ndarray, "n side side"], "_Paint"]:
        size = streams.uniform(2, low=1.5, high=4.0)
        u, v = self._turned(streams, 4)
        shape = (u / size[:, 0, None, None]) ** 2 + (v / np.minimum(size[:, 1], size[:, 0])[:, None, None]) ** 2 <= 1
        return shape, _Paint(streams.uniform(low=31.0, high=39.0)[:, None, None])

    def _vehicle(self, streams: Streams) -> tuple[Bool[np.ndarray, "n side side"], "_Paint"]:
        u, v = self._turned(streams, 9)
        length = streams.uniform(low=5.0, high=8.0)[:, None, None]
        body = streams.uniform(low=24.0, high=34.0)[:, None, None]
        engine = streams.uniform(low=45.0, high=75.0)[:, None, None]
        shape = (np.abs(u) <= length) & (np.abs(v) <= 0.45 * length)
        return shape, _Paint(np.where((u > 0.45 * length) & (np.abs(v) < 0.3 * length), engine, body))

    def _turned(self, streams: Streams, margin: int) -> tuple[Frames, Frames]:
        """Coordinates along and across a random direction about a random place, at least `margin` from the border."""
        place = streams.uniform(2, low=float(margin), high=float(self.side - margin))
        angle = streams.uniform(high=np.pi)[:, None, None]
        centre = np.arange(self.side) + 0.5
        down, right = centre[:, None] - place[:, :1, None], centre[None, :] - place[:, 1:, None]
        return right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)

    def _burning(self, heat: Frames, streams: Streams) -> Frames:
        """A ragged front with burnt ground behind it and spots near it."""
        side = self.side
        ahead, _ = self._turned(streams, side // 4)
        behind = -ahead + 0.35 * side * (plasma(side, 1.5, streams) - 0.5)
        flames = plasma(side, 1.15, streams)
        flicker = 1 + 0.25 * streams.normal(side, side)
        burnt = streams.uniform(low=8.0, high=35.0)[:, None, None]
        heat = heat + np.where(behind > 0, burnt * np.exp(-behind / (0.2 * side)) * (0.4 + 1.2 * flames), 0)
        width = streams.uniform(low=1.5, high=4.0)[:, None, None]
        core = np.clip(1 - np.abs(behind) / width, 0, 1) * np.clip(3 * (flames - 0.35), 0, 1)
        heat = heat + 500 * core * flicker
        for _ in range(8):
            u, v = self._turned(streams, 2)
            size = streams.uniform(2, low=0.8, high=3.5)[..., None, None]
            near = np.exp(-np.abs(behind) / (0.25 * side)) > streams.uniform()[:, None, None]
            glow = np.clip(1.3 - (u / size[:, 0]) ** 2 - (v / size[:, 1]) ** 2, 0, 1)
            hot = np.exp(streams.uniform(low=np.log(18.0), high=np.log(350.0)))[:, None, None]
            heat = heat + near * glow * hot * flicker
        return heat

    def _smoke(self, heat: Frames, streams: Streams) -> Frames:
        """Plumes of 26 to 34 °C that hide up to three quarters of what is below."""
        smoke = np.clip(1.6 * (plasma(self.side, 1.6, streams) - 0.45), 0, 0.75)
        plume = streams.uniform(low=26.0, high=34.0)[:, None, None]
        return np.asarray(heat * (1 - smoke) + plume * smoke)


@dataclass(frozen=True)
class _Paint:
    """Replaces temperatures by `heat`, which covers what lies below but keeps a little of its texture."""

    heat: Float[np.ndarray, "n _ _"]

    def __call__(self, below: Frames) -> Frames:
        return self.heat + 0.1 * (below - below.mean((1, 2), keepdims=True))


def gain_control(
    raw: Shaped[np.ndarray, "n height width"],
    mode: str = "plateau",
    *,
    percentiles: tuple[float, float] = (1.0, 99.0),
    plateau: float = 0.03,
    bins: int = 256,
) -> UInt8[np.ndarray, "n height width"]:
    """8-bit frames; within a frame a warmer pixel is never darker than a colder one.

    "percentile" stretches the range between two percentiles of the frame over 0 to 255.  "plateau" equalises the
    frame's histogram of `bins` bins after cutting every bin at `plateau`, a share of the pixels, so that a wide even
    ground does not take the whole range.

    Raises InputError for 8-bit frames, which have been through gain control, and parameters out of range.
    """
    if raw.dtype != np.uint16:
        raise InputError(f"gain control takes 16-bit counts, got {raw.dtype}")
    if mode not in ("percentile", "plateau"):
        raise InputError(f"mode must be 'percentile' or 'plateau', got {mode!r}")
    if not (0 <= percentiles[0] < percentiles[1] <= 100 and 0 < plateau <= 1 and bins >= 2):
        raise InputError(f"got percentiles {percentiles}, plateau {plateau}, bins {bins}: see the docstring for ranges")
    if mode == "percentile":
        low, high = np.percentile(raw, percentiles, axis=(1, 2), keepdims=True)
        scaled = (raw - low) / np.maximum(high - low, 1e-9)
        return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return np.stack([_equalised(frame, plateau, bins) for frame in raw]) if len(raw) else np.zeros(raw.shape, np.uint8)


def _equalised(frame: Shaped[np.ndarray, "height width"], plateau: float, bins: int) -> np.ndarray:
    low, high = int(frame.min()), int(frame.max())
    counts, edges = np.histogram(frame, bins=min(bins, high - low + 1), range=(low, high + 1))
    mass = np.minimum(counts, plateau * frame.size).cumsum()
    levels = np.interp(np.arange(low, high + 1) + 0.5, edges, np.concatenate([[0.0], mass / mass[-1]]))
    table = np.maximum.accumulate(np.round(255 * levels)).astype(np.uint8)
    return np.asarray(table[frame.astype(np.int64) - low])


def detector_input(frames: Shaped[np.ndarray, "n height width"]) -> Float[np.ndarray, "n 1 height width"]:
    """8-bit frames as float32 in [0, 1] with a channel.  Raises InputError for 16-bit frames: apply gain control."""
    if frames.dtype != np.uint8:
        raise InputError(f"detectors take 8-bit frames, got {frames.dtype}; apply gain_control to raw counts first")
    return frames[:, None].astype(np.float32) / np.float32(255)


def hot_regions(
    raw: Shaped[np.ndarray, "n height width"], *, celsius: float | None = None, percentile: float | None = None
) -> Bool[np.ndarray, "n height width"]:
    """Pixels at or above a temperature (16-bit counts in hundredths of a kelvin), or above a percentile of their frame.

    Raises InputError unless exactly one of the two is given, or for a temperature asked of 8-bit frames.
    """
    if (celsius is None) == (percentile is None):
        raise InputError(f"give one of celsius and percentile, got {celsius} and {percentile}")
    if celsius is not None:
        if raw.dtype != np.uint16:
            raise InputError(f"a temperature needs 16-bit counts, got {raw.dtype}; use percentile for 8-bit frames")
        return np.asarray(raw >= 100 * (celsius + KELVIN))
    assert percentile is not None
    if not 0 <= percentile < 100:
        raise InputError(f"percentile must lie in [0, 100), got {percentile}")
    return np.asarray(raw > np.percentile(raw, percentile, axis=(1, 2), keepdims=True))
