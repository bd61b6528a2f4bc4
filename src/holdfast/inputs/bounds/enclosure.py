"""What a network computes in exact arithmetic, as a point and how far the truth may be from it.

A certificate that starts from features f(x) starts from rounded ones.  Interval arithmetic with outward rounding over
the captured graph gives an interval for every feature; its middle and its width say all that is needed.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.inputs.bounds.bounding import bounds
from holdfast.inputs.bounds.graph import Graph, capture
from holdfast.inputs.bounds.region import Region
from holdfast.threats.balls import Linf

#: A change that no floating-point input can show: the region is the input itself.
_NOTHING = 1e-300


@torch.no_grad()
def enclosed(
    model: nn.Module | Graph, x: Float[Tensor, "batch *shape"], norm: float | int = 2
) -> tuple[Float[Tensor, "batch outputs"], Float[Tensor, " batch"]]:
    """(z, error): outputs z in float64 with ||f(x) - z|| <= error, f in exact arithmetic on the stored weights.

    Raises UnsupportedError when the graph holds an operator without a bounding rule, InputError as `bounds` does.
    """
    graph = model if isinstance(model, Graph) else capture(model, x)
    found = bounds(graph, Region(x.double(), Linf(_NOTHING)), method="ibp", rounding="outward")
    # The whole width, where half would do: it pays for the rounding of the middle and of this norm.
    error: Tensor = torch.linalg.vector_norm(found.upper - found.lower, ord=norm, dim=1)
    return (found.lower + found.upper) / 2, error
