"""The reduced form of nodes and directions, on which all estimation works.

A node's vocabulary is divided into entries: its candidates, one token each, and possibly a tail entry for all others.
Nodes have different numbers of entries; arrays are padded with entries of mass 0.

Legend of shape suffixes: N nodes, K entries of a node (padded), T recorded rollouts of the tails of all nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]
    # Whole numbers, or not after pooling.
    Counts = NDArray[np.int64 | np.float64]

Scalar = TypeVar("Scalar", bound=np.generic)

TAIL = -1
PADDING = -2


class Support(IntEnum):
    """Over which tokens inner products and norms were taken; numbered as in `alignment.proto`."""

    FULL_VOCABULARY = 1
    BUCKETED = 2
    CANDIDATES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRollouts:
    """Rollouts that were forced to start with a token sampled from the student's own tail, and which token that was.

    A node either has all rollouts of its tail here or none.
    """

    node_T: Ints
    """Index of the node."""
    token_T: Ints
    """Token that was forced."""
    prob_T: Floats
    """P of that token."""
    success_T: Bools
    """Whether the rollout was a verified success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Policies and outcomes at N nodes.

    Invariants: masses of a node sum to 1; `successes <= trials`; where `known`, `trials` is 0 and `successes` is the
    value; padding comes last, with mass 0 and no trials; at most one entry of a node is its tail.
    """

    keys: tuple[str, ...]
    """A name for each node. Seeds its random draws, so that they depend neither on order nor on batches."""
    token_NK: Ints
    """Token of the entry, `TAIL` or `PADDING`."""
    mass_NK: Floats
    """P of the entry."""
    sum_sq_NK: Floats
    """Sum of P² over the entry's tokens: P² for a candidate."""
    successes_NK: Counts
    """Verified successes among the entry's rollouts."""
    trials_NK: Counts
    """Finished rollouts forced into the entry; after `pooled_counts` what all is worth that informs it."""
    known_NK: Bools
    """Whether the success probability is known without rollouts: then it is `successes`."""
    support_N: Ints
    """`Support` of the node."""
    tail: TailRollouts
    """Recorded rollouts of tails, possibly none."""

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.keys)

    @property
    def tail_mass_N(self) -> Floats:
        """P of the tail."""
        return masked_sum(self.mass_NK, self.token_NK == TAIL)

    @property
    def tail_sum_sq_N(self) -> Floats:
        """Sum of P² over the tail's tokens."""
        return masked_sum(self.sum_sq_NK, self.token_NK == TAIL)

    @property
    def coverage_N(self) -> Floats:
        """P of the candidates together."""
        return masked_sum(self.mass_NK, self.token_NK >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One teacher's and objective's distillation direction d at the same N nodes, and what is needed of it."""

    teacher: str
    objective: str
    inner_NK: Floats
    """Sum of P_j d_j over the entry's tokens j."""
    total_NK: Floats
    """Sum of d_j over the entry's tokens."""
    norm_N: Floats
    """Norm of d over all tokens of the node's support."""
    teacher_mass_NK: Floats
    """q of the entry."""
    tail_variance_N: Floats
    """Variance of d_j for j sampled from the student's tail; 0 where there is none or it is not known."""
    tail_value_T: Floats
    """d_j of the token of every recorded rollout, parallel to `Nodes.tail`."""


def masked_sum(values_NK: Floats, mask_NK: Bools) -> Floats:
    """Sum over the entries where the mask holds."""
    return row_sum(np.where(mask_NK, values_NK, 0.0))


def row_sum(values_NK: Floats) -> Floats:
    """Sum over a node's entries."""
    sums_N: Floats = values_NK.sum(axis=1)
    return sums_N


def no_tail_rollouts() -> TailRollouts:
    """Nothing recorded."""
    return TailRollouts(
        node_T=np.zeros(0, np.int64), token_T=np.zeros(0, np.int64), prob_T=np.zeros(0), success_T=np.zeros(0, np.bool_)
    )


def concat_nodes(parts: Sequence[Nodes]) -> Nodes:
    """All nodes of the parts, in their order."""
    width = max(part.token_NK.shape[1] for part in parts)
    starts = np.cumsum([0, *(len(part) for part in parts)])
    tails = [replace(part.tail, node_T=part.tail.node_T + start) for part, start in zip(parts, starts, strict=False)]
    return Nodes(
        keys=tuple(key for part in parts for key in part.keys),
        token_NK=_stack([part.token_NK for part in parts], width, PADDING),
        mass_NK=_stack([part.mass_NK for part in parts], width),
        sum_sq_NK=_stack([part.sum_sq_NK for part in parts], width),
        successes_NK=_stack([part.successes_NK for part in parts], width),
        trials_NK=_stack([part.trials_NK for part in parts], width),
        known_NK=_stack([part.known_NK for part in parts], width),
        support_N=np.concatenate([part.support_N for part in parts]),
        tail=TailRollouts(
            **{f.name: np.concatenate([getattr(t, f.name) for t in tails]) for f in fields(TailRollouts)}
        ),
    )


def concat_directions(parts: Sequence[Direction]) -> Direction:
    """One direction at all nodes of the parts, which agree on teacher and objective."""
    width = max(part.inner_NK.shape[1] for part in parts)
    return Direction(
        teacher=parts[0].teacher,
        objective=parts[0].objective,
        inner_NK=_stack([part.inner_NK for part in parts], width),
        total_NK=_stack([part.total_NK for part in parts], width),
        norm_N=np.concatenate([part.norm_N for part in parts]),
        teacher_mass_NK=_stack([part.teacher_mass_NK for part in parts], width),
        tail_variance_N=np.concatenate([part.tail_variance_N for part in parts]),
        tail_value_T=np.concatenate([part.tail_value_T for part in parts]),
    )


def _stack(parts: Sequence[NDArray[Scalar]], width: int, fill: int = 0) -> NDArray[Scalar]:
    """Rows of all parts, padded to one width."""
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts]
    return np.concatenate(padded)
