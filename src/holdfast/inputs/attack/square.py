"""Square Attack (Andriushchenko et al., 2020): random search by scores alone.

Every query proposes a square (per example: its own place and signs) and keeps it when the margin z_y - max_{j != y}
z_j falls.  The share p of the input that a square covers starts at `first_share` and falls on the published schedule.
With a `hope`, an example whose margin has too far to go is given up (see `hope`).

    L-infinity and Box   start with vertical stripes at the ends of the interval; a square sets its channels to one end
    L2 and L1            start with a 5 x 5 grid of bumps brought into the ball; a step clears one window and spends
                         its norm, and what is unused, on a bump in another

Images are (batch, channels, height, width) of any proportions; rows (batch, features) are treated as images of height
one, where the square is an interval of features.  Errors as in `gradient`; UnsupportedError for other threats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.hope import check_hope, given_up
from holdfast.inputs.attack.loop import CHUNK, Attack, AttackRun, Model, Search, forward
from holdfast.inputs.attack.losses import Goal
from holdfast.threats.balls import L1, L2, Box, Linf
from holdfast.threats.base import Threat, Valid, uniform

#: Query number after which the share is first_share / 2**(place + 1).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
#: Share of the queries after which an example may first be given up, and between one look and the next.
FIRST_LOOK, LOOK_EVERY = 0.05, 0.01
#: Query from which on at most so many proposals of an example are made at once, of which the best may be kept.
SETTLED, MOST_AT_ONCE = 500, 8


def share(query: int, first_share: float) -> float:
    """Share of the input a square covers at this query."""
    return first_share / 2 ** sum(query > step for step in HALVINGS)


@dataclass(frozen=True)
class Square(Attack):
    """Square Attack with `queries` proposals; `rescale` stretches the schedule to their number."""

    threat: Threat
    queries: int = 5000
    first_share: float = 0.8
    rescale: bool = False
    hope: float | None = None

    def __post_init__(self) -> None:
        check_hope(self.hope)
        if not isinstance(self.threat, (Linf, Box, L2, L1)):
            raise UnsupportedError(f"Square attacks L-infinity, Box, L2 and L1 threats, not {self.threat!r}")
        if self.queries < 1 or not 0 < self.first_share <= 1:
            raise InputError(
                f"Square needs at least one query and a share in (0, 1], got {self.queries} and {self.first_share}"
            )

    def run(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
        clean_logits: Float[Tensor, "batch classes"] | None = None,
    ) -> AttackRun:
        """Adversarial inputs with the record of the search; `clean_logits` saves a pass where they are known."""
        search = Search.begin(model, self.threat, x, y, valid, goal, "margin", clean_logits)
        rows = search.standing()
        if not len(rows):
            return search.close()
        start, plane = search.x[rows], as_planes(search.x[rows])
        ends = tuple(as_planes(end) for end in self.threat.interval(start, valid))
        by_ends = isinstance(self.threat, (Linf, Box))
        limits = as_limits(valid, start)
        power = 1 if isinstance(self.threat, L1) else 2
        current = stripes(plane, ends, generator) if by_ends else bump_grid(plane, power, generator)
        best = torch.full_like(search.best_loss[rows], -torch.inf)
        aim = search.aim.take(rows)
        clean = aim.value(search.logits[rows])
        look, look_every = max(int(FIRST_LOOK * self.queries), 1), max(int(LOOK_EVERY * self.queries), 1)
        query = 0
        while query < self.queries:
            # Once few proposals are kept, several of one example may be made at a time: passes of few rows are slow.
            many = min(self._at_once(query, len(rows)), self.queries - query)
            if query == 0:
                proposal = current
            else:
                covered = share(query * 10000 // self.queries if self.rescale else query, self.first_share)
                now, bounds = repeated(current, many), tuple(repeated(end, many) for end in ends)
                if by_ends:
                    proposal = set_square(now, bounds, covered, generator)
                else:
                    proposal = move_mass(now, self.threat.radius, power, covered, generator)
            point = self._admissible(proposal, repeated(plane, many), by_ends, limits)
            logits = forward(search.model, point.reshape(-1, *start.shape[1:]))
            if many > 1:
                worth = torch.nan_to_num(aim.repeated(many).value(logits), nan=-torch.inf).reshape(many, -1)
                taken = worth.argmax(0) * len(rows) + torch.arange(len(rows), device=rows.device)
                proposal, point, logits = proposal[taken], point[taken], logits[taken]
            loss = aim.value(logits)
            leaving = search.note(rows, point.reshape(start.shape), logits, loss)
            search.queries[rows] += many - 1
            better = loss > best
            # What is kept is the admissible change: mass that the valid range cut off is free to be spent elsewhere.
            kept = proposal if by_ends else point - plane
            current = torch.where(better[:, None, None, None], kept, current)
            best = torch.where(better, loss, best)
            query += many
            if self.hope is not None and query >= look:
                look = query + look_every
                leaving = leaving | given_up(-best, best - clean, query / self.queries, self.hope)
            if bool(leaving.any()):
                keep = ~leaving
                rows, start, plane, current, best = rows[keep], start[keep], plane[keep], current[keep], best[keep]
                ends, aim, clean = tuple(end[keep] for end in ends), search.aim.take(rows), clean[keep]
                if not len(rows):
                    break
        return search.close()

    def _at_once(self, query: int, rows: int) -> int:
        """How many proposals of every example go through the model together."""
        return max(1, min(MOST_AT_ONCE, CHUNK // rows)) if query >= SETTLED else 1

    def _admissible(self, proposal: Tensor, plane: Tensor, by_ends: bool, limits: Valid) -> Tensor:
        """Points of a proposal: itself between the ends; in the L2 ball a direction scaled to the whole radius and
        clipped; in the L1 ball a change that projection brings in, which keeps its largest entries only.
        """
        if by_ends:
            return proposal
        if isinstance(self.threat, L1):
            return self.threat.project(plane + proposal, plane, limits)
        size = self.threat.norm(proposal).clamp(min=torch.finfo(plane.dtype).tiny)
        return self.threat.project(plane + proposal * (self.threat.radius / size)[:, None, None, None], plane, limits)


def repeated(values: Tensor, many: int) -> Tensor:
    """The batch `many` times over."""
    return values.repeat(many, *(1,) * (values.ndim - 1)) if many > 1 else values


def as_planes(x: Tensor) -> Float[Tensor, "batch channels height width"]:
    """Images as they are; anything else as one row of features."""
    return x if x.ndim == 4 else x.reshape(len(x), 1, 1, -1)


def as_limits(valid: Valid, x: Float[Tensor, "batch *shape"]) -> Valid:
    """The valid range of examples shaped like those of `x`, broadcastable against planes."""
    if valid is None:
        return None
    low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in valid)
    return as_planes(low.expand(x.shape[1:])[None]), as_planes(high.expand(x.shape[1:])[None])


def side_lengths(plane: Tensor, covered: float, smallest: int = 1) -> tuple[int, int]:
    """Height and width of a window covering a share of the plane; odd when `smallest` is 3."""
    height, width = plane.shape[2:]
    if height == 1:
        sides = [1, max(round(covered * width), smallest)]
    else:
        side = max(round((covered * height * width) ** 0.5), smallest)
        sides = [side, side]
    if smallest == 3:
        sides = [side + 1 - side % 2 for side in sides]
    return min(sides[0], height), min(sides[1], width)


def stripes(plane: Tensor, ends: tuple[Tensor, ...], generator: torch.Generator | None) -> Tensor:
    """Each column of each channel at one end of its interval."""
    drawn = uniform(plane, generator, (*plane.shape[:2], 1, plane.shape[3]))
    return torch.where(drawn < 0.5, ends[0], ends[1])


def corners(plane: Tensor, window: tuple[int, int], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A random place of a window, one an example."""
    drawn = uniform(plane.double(), generator, (2, len(plane)))
    places = [plane.shape[2 + k] - window[k] + 1 for k in range(2)]
    top, left = ((drawn[k] * places[k]).long().clamp(max=places[k] - 1) for k in range(2))
    return top, left


def window_mask(plane: Tensor, window: tuple[int, int], top: Tensor, left: Tensor) -> Tensor:
    """(batch, 1, height, width) true inside each example's window."""
    rows = torch.arange(plane.shape[2], device=plane.device)
    columns = torch.arange(plane.shape[3], device=plane.device)
    down = (rows >= top[:, None]) & (rows < top[:, None] + window[0])
    across = (columns >= left[:, None]) & (columns < left[:, None] + window[1])
    return (down[:, :, None] & across[:, None, :])[:, None]


def set_square(current: Tensor, ends: tuple[Tensor, ...], covered: float, generator: torch.Generator | None) -> Tensor:
    """A square whose channels each go to one end of their interval."""
    window = side_lengths(current, covered)
    mask = window_mask(current, window, *corners(current, window, generator))
    low = uniform(current, generator, (*current.shape[:2], 1, 1)) < 0.5
    return torch.where(mask, torch.where(low, ends[0], ends[1]), current)


def bump(height: int, width: int, like: Tensor, power: int = 2) -> Float[Tensor, "height width"]:
    """Two pyramids of opposite sign side by side along the longer axis, of unit Lp norm, p = `power`.

    A pyramid's value is the sum of 1 / (k + 1)^(2 for L2, 4 for L1) over the nested rectangles, from the largest in,
    that hold the place.
    """
    if width > height:
        return bump(width, height, like, power).T
    half = height // 2
    joined = -pyramid(height - half, width, like, power)
    if half:
        joined = torch.cat([pyramid(half, width, like, power), joined])
    return joined / torch.linalg.vector_norm(joined, power)


def pyramid(height: int, width: int, like: Tensor, power: int) -> Tensor:
    """Sum of 1 / (k + 1)^(4 / power) over rings k at least as large as the Chebyshev distance from the centre."""
    rows = torch.arange(height, device=like.device) - height // 2
    columns = torch.arange(width, device=like.device) - width // 2
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    rings = torch.arange(max(height, width) // 2 + 1, device=like.device)
    worth = (rings + 1.0) ** (-4 / power)
    tail = worth.flip(0).cumsum(0).flip(0).to(like.dtype)
    return tail[distance.clamp(max=len(rings) - 1)]


def random_signs(plane: Tensor, generator: torch.Generator | None) -> Tensor:
    """One sign per example and channel."""
    return torch.where(uniform(plane, generator, (*plane.shape[:2], 1, 1)) < 0.5, -1.0, 1.0).to(plane.dtype)


def bump_grid(plane: Tensor, power: int, generator: torch.Generator | None) -> Tensor:
    """A 5 x 5 grid of bumps with random signs (1 x 5 for rows)."""
    height, width = plane.shape[2:]
    high, wide = max(height // 5, 1), max(width // 5, 1)
    grid, shape = torch.zeros_like(plane), bump(high, wide, plane, power)
    for top in range((height % high) // 2, height - high + 1, high):
        for left in range((width % wide) // 2, width - wide + 1, wide):
            grid[:, :, top : top + high, left : left + wide] = shape * random_signs(plane, generator)
    return grid


def move_mass(
    current: Tensor, radius: float, power: int, covered: float, generator: torch.Generator | None
) -> Float[Tensor, "batch channels height width"]:
    """Clear one window of the change `current` and spend its norm, and the unused budget, on a bump in another."""
    window = side_lengths(current, covered, smallest=3)
    places = [corners(current, window, generator) for _ in range(2)]
    into, out_of = (window_mask(current, window, *place) for place in places)
    held = (current.abs() ** power * (into | out_of)).sum((2, 3), keepdim=True)
    used = (current.abs() ** power).sum((1, 2, 3), keepdim=True)
    unused = (radius**power - used).clamp(min=0) / current.shape[1]
    inside = current * into
    inside_size = (inside.abs() ** power).sum((2, 3), keepdim=True) ** (1 / power)
    fresh = place_bump(current, window, places[0], power, generator) * random_signs(current, generator)
    fresh = fresh + inside / inside_size.clamp(min=1e-12)
    fresh_size = (fresh.abs() ** power).sum((2, 3), keepdim=True) ** (1 / power)
    # In the L1 ball the projection that follows thins what was there by what is spent too much here.
    worth = (held + unused) * (current.shape[1] if power == 1 else 1)
    fresh = fresh / fresh_size.clamp(min=1e-12) * worth ** (1 / power)
    return torch.where(into, fresh, torch.where(out_of, 0.0, current))


def place_bump(
    plane: Tensor, window: tuple[int, int], place: tuple[Tensor, Tensor], power: int, generator: torch.Generator | None
) -> Tensor:
    """(batch, 1, height, width): one bump at each example's place, lying either way where the window is square."""
    rows = (torch.arange(plane.shape[2], device=plane.device) - place[0][:, None]).clamp(0, window[0] - 1)
    columns = (torch.arange(plane.shape[3], device=plane.device) - place[1][:, None]).clamp(0, window[1] - 1)
    rows, columns = rows[:, :, None], columns[:, None, :]
    shape = bump(*window, plane, power)
    spread = shape[rows, columns]
    if window[0] == window[1]:
        upright = uniform(plane, generator, (len(plane), 1, 1)) < 0.5
        spread = torch.where(upright, spread, shape.T[rows, columns])
    return spread[:, None] * window_mask(plane, window, *place)
