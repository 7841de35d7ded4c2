"""Where the next rollouts of a question buy most.

The variance of a linear function Σ c V̂ after elimination of the linked entries is Σ c² v/n, smallest for n ∝ |c| √v
(Neyman 1934). Many functions, one of each teacher and objective, are served by one allocation: the one that makes the
largest of their variances, each in units of the least that the same budget could reach for it alone, as small as
possible.

Legend of shape suffixes: N nodes, K entries of a node, D directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.chain import TOLERANCE, eliminate
from opdscope_scorer.estimator import coefficients
from opdscope_scorer.fit import fit
from opdscope_scorer.links import Links
from opdscope_scorer.nodes import TAIL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.nodes import Bools, Direction, Floats, Ints, Nodes

# Shares of the budget after which the allocation is decided anew.
SHARES = (0.2, 0.5, 1.0)
# Links with more skipped mass than this are not relied upon: their entries get rollouts of their own.
_RELIED = TOLERANCE * 0.05
_BALANCE_STEPS = 12
# Variance of an outcome of which nothing is known.
_UNKNOWN = 0.25
# What an entry without rollouts may differ by from the mean of its node.
_DIFFERENCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionState:
    """What is known after complete rounds."""

    nodes: Nodes
    """All different nodes of the question, with all outcomes so far, possibly none."""
    links: Links
    directions: Sequence[Direction]


def plan_round(state: QuestionState, rollouts: int) -> Ints:
    """How many more rollouts every entry gets, [N, K]: at most `rollouts` together, none for what cannot matter."""
    links = relied(state.links)
    c_NKD = np.stack([coefficients(state.nodes, direction) for direction in state.directions], axis=2)
    free_NKD = eliminate(links, state.nodes.mass_NK, np.nan_to_num(c_NKD))
    variance_NK = _variances(state, links)
    square_NKD = free_NKD**2 * variance_NK[:, :, None] + _tail_squares(state)
    open_NK = (state.nodes.mass_NK > 0) & ~state.nodes.known_NK
    open_NK[links.node_E, links.entry_E] = False
    square_NKD[~open_NK] = 0.0
    total = rollouts + int(state.nodes.trials_NK.sum())
    needed_NK = open_NK & ~negligible(np.where(open_NK[:, :, None], free_NKD, 0.0), square_NKD, total)
    worth_NK = np.where(needed_NK, np.sqrt(balance(square_NKD)), 0.0)
    return distribute(worth_NK, needed_NK, state.nodes.trials_NK, rollouts)


def relied(links: Links) -> Links:
    """Links whose error does not matter beside usual standard errors."""
    keep_E = links.skipped_E <= _RELIED
    return Links(
        node_E=links.node_E[keep_E],
        entry_E=links.entry_E[keep_E],
        child_E=links.child_E[keep_E],
        value_E=links.value_E[keep_E],
        skipped_E=links.skipped_E[keep_E],
    )


# min over n of max_d Var_d/Var*_d is reached for n ∝ √(Σ w_d c_d² v/Var*_d), with weights w that make the ratios equal
def balance(square_NKD: Floats) -> Floats:
    """Weighted sum of the directions' c² v, whose root is the allocation that serves them all, [N, K]."""
    flat_MD = square_NKD.reshape(-1, square_NKD.shape[2])
    least_D = np.sqrt(flat_MD).sum(axis=0) ** 2
    scaled_MD = flat_MD[:, least_D > 0] / least_D[least_D > 0]
    weight_D = np.full(scaled_MD.shape[1], 1 / max(scaled_MD.shape[1], 1))
    for _ in range(_BALANCE_STEPS):
        n_M = np.sqrt(scaled_MD @ weight_D)
        ratio_D = np.divide(scaled_MD, n_M[:, None], out=np.zeros_like(scaled_MD), where=n_M[:, None] > 0).sum(axis=0)
        weight_D = weight_D * ratio_D
        weight_D /= weight_D.sum()
    balanced_NK: Floats = (scaled_MD @ weight_D).reshape(square_NKD.shape[:2])
    return balanced_NK


def negligible(free_NKD: Floats, square_NKD: Floats, total: int) -> Bools:
    """Entries that may go without rollouts: in no direction may all of them together matter beside its error."""
    error_D = np.sqrt(square_NKD).sum(axis=(0, 1)) / np.sqrt(max(total, 1))
    share_NKD = np.divide(
        _DIFFERENCE * np.abs(free_NKD), error_D, out=np.zeros_like(free_NKD), where=error_D > 0
    )
    share_M = share_NKD.max(axis=2, initial=0.0).ravel()
    order_M = np.argsort(share_M, kind="stable")
    none_M = np.zeros(share_M.size, np.bool_)
    none_M[order_M] = np.cumsum(share_M[order_M]) <= TOLERANCE
    none_NK: Bools = none_M.reshape(free_NKD.shape[:2])
    return none_NK


# min Σ r²/(n + x), Σ x = B, x ≥ 0:  n + x = λ r where that is above n
def distribute(worth_NK: Floats, needed_NK: Bools, trials_NK: Ints, rollouts: int) -> Ints:
    """Whole numbers of rollouts, so that those of every entry come as near as can be to proportion with its worth.

    What is needed and has none gets one, the worthiest first; equals are served in the order of nodes and entries.
    """
    worth_M, trials_M = worth_NK.ravel(), trials_NK.ravel().astype(np.float64)
    first_M = np.zeros(worth_M.size)
    waiting = np.flatnonzero(needed_NK.ravel() & (trials_M == 0))
    first_M[waiting[np.argsort(-worth_M[waiting], kind="stable")][:rollouts]] = 1.0
    left = rollouts - int(first_M.sum())
    more_M = _fill(worth_M, trials_M + first_M, left)
    whole_M = np.floor(more_M)
    rest = left - int(whole_M.sum())
    order_M = np.argsort(-(more_M - whole_M), kind="stable")[: max(rest, 0)]
    whole_M[order_M[more_M[order_M] > 0]] += 1
    return (whole_M + first_M).astype(np.int64).reshape(worth_NK.shape)


def _fill(worth_M: Floats, trials_M: Floats, budget: int) -> Floats:
    """Real numbers x of rollouts with n + x ∝ worth where x > 0."""
    some = np.flatnonzero(worth_M > 0)
    if not some.size or budget <= 0:
        return np.zeros_like(worth_M)
    order = some[np.argsort(trials_M[some] / worth_M[some], kind="stable")]
    level_M = (budget + np.cumsum(trials_M[order])) / np.cumsum(worth_M[order])
    below = trials_M[order] / worth_M[order] < level_M
    level = level_M[np.flatnonzero(below)[-1]]
    return np.where(worth_M > 0, np.maximum(level * worth_M - trials_M, 0.0), 0.0)


def _variances(state: QuestionState, links: Links) -> Floats:
    """Variance of one outcome of every entry: from the posterior, or the largest there is before any outcome."""
    if not state.nodes.trials_NK.any():
        return np.full(state.nodes.mass_NK.shape, _UNKNOWN)
    return fit(state.nodes, links).moments.bernoulli_NK


# P_R² v Var_R(d): what recorded tokens of the tail add (see `tails`)
def _tail_squares(state: QuestionState) -> Floats:
    """Variance that a rollout of the tail has beyond one value for all of it, [N, K, D]."""
    mass_NK = np.where(state.nodes.token_NK == TAIL, state.nodes.mass_NK, 0.0)
    spread_ND = np.stack([direction.tail_variance_N for direction in state.directions], axis=1)
    squares_NKD: Floats = _UNKNOWN * mass_NK[:, :, None] ** 2 * np.nan_to_num(spread_ND)[:, None, :]
    return squares_NKD
