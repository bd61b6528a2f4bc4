"""How much work a backward method would have with a network over a region.

CROWN carries one row back to the input for every entry of a value that some relaxation depends on and that is not
already bounded exactly: for a ReLU network, the neurons whose sign intervals leave open.  So their number, times the
cost of a pass over the network, says beforehand what the bounds will cost.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from holdfast.inputs.bounds.graph import Graph
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.region import Region
from holdfast.inputs.bounds.rounding import Rounding


@torch.no_grad()
def open_entries(graph: Graph, region: Region) -> Int[Tensor, " batch"]:
    """Entries of every example that a backward method would bound, judged by intervals."""
    state = Propagation(graph.bind(region.x.dtype, region.x.device), region, Rounding(False, 0))
    count = torch.zeros(len(region), dtype=torch.int64, device=region.x.device)
    seen: dict[int, Tensor] = {}
    for _ in state.nodes:
        for position, wanted in state.demands():
            if not state.tight[position]:
                seen[position] = wanted | seen.get(position, torch.zeros_like(wanted))
        state.advance()
    for marked in seen.values():
        count += marked.flatten(1).sum(1)
    return count
