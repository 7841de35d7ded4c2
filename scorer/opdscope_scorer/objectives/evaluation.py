"""Many objectives at many nodes: shared work once, bounded memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from opdscope_scorer.objectives.base import BoundObjective
from opdscope_scorer.objectives.inputs import ObjectiveInputs

# Arrays [nodes, V] of float64 that are alive at once: inputs, what is shared, and the temporaries of one objective.
ARRAYS_ALIVE = 32


@dataclass(frozen=True)
class Evaluation:
    """The direction of one objective at some of the nodes.

    Attributes:
        rows: Which nodes.
        objective: Which objective.
        inputs: These nodes in float64, with what is already computed of them.
        direction_NV: d; consumers that keep no reference keep the memory bounded.
    """

    rows: slice
    objective: BoundObjective
    inputs: ObjectiveInputs
    direction_NV: Tensor


def evaluate(
    objectives: Iterable[BoundObjective], inputs: ObjectiveInputs, *, max_bytes: int = 1 << 28
) -> Iterator[Evaluation]:
    """Every objective at every node, chunk by chunk of nodes, one direction at a time.

    `max_bytes` bounds what is alive besides the inputs, but a chunk holds one node at least.

    Raises:
        InvalidObjectiveError: These inputs lack what one of the objectives needs; nothing was computed.
    """
    objectives = list(objectives)
    for objective in objectives:
        objective.require(inputs.offers)
    count, vocabulary = inputs.log_p_NV.shape
    step = max(1, max_bytes // (8 * vocabulary * ARRAYS_ALIVE))
    return (one for start in range(0, count, step) for one in _chunk(objectives, inputs, slice(start, start + step)))


def _chunk(objectives: list[BoundObjective], inputs: ObjectiveInputs, rows: slice) -> Iterator[Evaluation]:
    nodes = inputs.rows(rows)
    for objective in objectives:
        yield Evaluation(rows, objective, nodes, objective.direction(nodes))
