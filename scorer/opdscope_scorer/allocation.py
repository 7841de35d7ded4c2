"""Where the next rollouts of a question buy most.

The variance of a linear function Σ c V̂ after elimination of the linked entries is Σ c² v/n, smallest for n ∝ |c| √v
(Neyman 1934). Many functions, one of each teacher and objective, are served by one allocation: the one that makes the
largest of their variances, each in units of the least that the same budget could reach for it alone, as small as
possible.

Legend of shape suffixes: N nodes, K entries of a node, D directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.chain import TOLERANCE, eliminate
from opdscope_scorer.estimator import NO_DIRECTION, coefficients
from opdscope_scorer.fit import fit
from opdscope_scorer.links import Links, uncut
from opdscope_scorer.nodes import TAIL, row_sum
from opdscope_scorer.prior import PosteriorMoments, class_bernoulli

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.nodes import Bools, Counts, Direction, Floats, Ints, Nodes

# Shares of the budget after which the allocation is decided anew.
SHARES = (0.2, 0.5, 1.0)
# Links with more skipped mass than this are not relied upon: their entries get rollouts of their own.
_RELIED = TOLERANCE * 0.05
_BALANCE_STEPS = 12
# Variance of an outcome of which nothing is known.
_UNKNOWN = 0.25
# Relative variance of an alignment that is worth having.
_RELATIVE = 0.1
# Share of the rollouts that serves single nodes.
NODE_SHARE = 0.3
_ROUNDING = 1e-6
# What an entry without rollouts may differ by from the mean of its node.
_DIFFERENCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionState:
    """What is known after complete rounds."""

    nodes: Nodes
    """All different nodes of the question, with all outcomes so far, possibly none."""
    links: Links
    directions: Sequence[Direction]


def plan_round(state: QuestionState, rollouts: int, *, node_share: float = NODE_SHARE) -> Ints:
    """How many more rollouts every entry gets, [N, K]: at most `rollouts` together, none for what cannot matter.

    `node_share` of all rollouts serves single nodes, as far as sums over nodes do not serve them already.
    """
    nodes, links = state.nodes, relied(state.links)
    c_NKD = np.nan_to_num(np.stack([coefficients(nodes, direction) for direction in state.directions], axis=2))
    moments = _moments(state, links)
    open_NK = (nodes.mass_NK > 0) & ~nodes.known_NK
    open_NK[links.node_E, links.entry_E] = False
    free_NKD = np.where(open_NK[:, :, None], eliminate(links, nodes.mass_NK, c_NKD), 0.0)
    tail_NKD = _tail_squares(state)
    square_NKD = free_NKD**2 * moments.bernoulli_NK[:, :, None] + tail_NKD
    total = rollouts + int(nodes.trials_NK.sum())
    needed_NK = open_NK & ~negligible(free_NKD, square_NKD, total)
    worth_NK = np.where(needed_NK, np.sqrt(balance(square_NKD)), 0.0)
    alone_NKD = np.where(open_NK[:, :, None], c_NKD**2 * moments.bernoulli_NK[:, :, None] + tail_NKD, 0.0)
    least_NK = node_targets(alone_NKD, state.directions, expected_norm_sq(nodes, moments), node_share * total)
    return distribute(worth_NK, needed_NK, least_NK, nodes.trials_NK, rollouts)


def round_size(number: int, spent: int, budget: int) -> int:
    """Rollouts of the round with this number, from 0, when `spent` were finished in the rounds before it."""
    return max(int(SHARES[number] * budget) - spent, 0)


def relied(links: Links) -> Links:
    """Links whose error does not matter beside usual standard errors."""
    return uncut(links, links.skipped_E > _RELIED)


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
    share_NKD = np.divide(_DIFFERENCE * np.abs(free_NKD), error_D, out=np.zeros_like(free_NKD), where=error_D > 0)
    share_M = share_NKD.max(axis=2, initial=0.0).ravel()
    order_M = np.argsort(share_M, kind="stable")
    none_M = np.zeros(share_M.size, np.bool_)
    none_M[order_M] = np.cumsum(share_M[order_M]) <= TOLERANCE
    none_NK: Bools = none_M.reshape(free_NKD.shape[:2])
    return none_NK


# Relative variance of a node's alignments with n rollouts: S/(nG), S = (Σ |c| √v)²/‖d‖², G = ‖g‖².
# min Σ_u a/(a + n_u), a = S/(ν G):  n_u = √(a/λ) - a where that is positive
def node_targets(alone_NKD: Floats, directions: Sequence[Direction], norm_sq_N: Floats, rollouts: float) -> Floats:
    """Rollouts of every entry, [N, K], with which most nodes come to be known to a relative variance below ν.

    Nodes of which that would take too many get none.
    """
    scale_ND = np.stack([np.nan_to_num(direction.norm_N) ** 2 for direction in directions], axis=1)
    share_NKD = np.divide(
        alone_NKD, scale_ND[:, None, :], out=np.zeros_like(alone_NKD), where=scale_ND[:, None, :] > NO_DIRECTION**2
    )
    root_NK = np.sqrt(share_NKD.mean(axis=2))
    sum_N = root_NK.sum(axis=1)
    usable_N = (sum_N > 0) & (norm_sq_N > 0)
    half_N = np.where(usable_N, sum_N**2 / (_RELATIVE * np.where(usable_N, norm_sq_N, 1.0)), np.inf)
    count_N = _saturating(half_N, rollouts)
    targets_NK: Floats = count_N[:, None] * root_NK / np.where(sum_N > 0, sum_N, 1.0)[:, None]
    return targets_NK


def _saturating(half_N: Floats, budget: float) -> Floats:
    """Solves for n = √(a/λ) - a by adding nodes in the order of a."""
    order = np.argsort(half_N, kind="stable")
    some_N = half_N[order][np.isfinite(half_N[order])]
    if not some_N.size or budget <= 0:
        return np.zeros_like(half_N)
    root_N = (budget + np.cumsum(some_N)) / np.cumsum(np.sqrt(some_N))
    root = root_N[np.flatnonzero(np.sqrt(some_N) < root_N)[-1]]
    finite_N = np.where(np.isfinite(half_N), half_N, 0.0)
    count_N: Floats = np.maximum(root * np.sqrt(finite_N) - finite_N, 0.0)
    return count_N


# E[Σ w (V - J)²] = Σ w (m - J)² + tr(M Var),  M_kk = w (1 - 2π) + S π²
def expected_norm_sq(nodes: Nodes, moments: PosteriorMoments) -> Floats:
    """Posterior mean of the ideal direction's squared norm."""
    pi_NK, w_NK = nodes.mass_NK, nodes.sum_sq_NK
    mean_N1 = row_sum(pi_NK * moments.mean_NK)[:, None]
    diagonal_NK = w_NK * (1 - 2 * pi_NK) + row_sum(w_NK)[:, None] * pi_NK**2
    return row_sum(w_NK * (moments.mean_NK - mean_N1) ** 2 + diagonal_NK * moments.variance_NK)


# min Σ r²/(n + x), Σ x = B, x ≥ 0:  n + x = λ r where that is above n and the least
def distribute(worth_NK: Floats, needed_NK: Bools, least_NK: Floats, trials_NK: Counts, rollouts: int) -> Ints:
    """Whole numbers of rollouts, so that those of every entry come as near as can be to proportion with its worth.

    What is needed and has none gets one, the worthiest first; equals are served in the order of nodes and entries.
    Then what has fewer than its least.
    """
    worth_M, trials_M = worth_NK.ravel(), trials_NK.ravel().astype(np.float64)
    first_M = np.zeros(worth_M.size)
    waiting = np.flatnonzero(needed_NK.ravel() & (trials_M == 0))
    first_M[waiting[np.argsort(-worth_M[waiting], kind="stable")][:rollouts]] = 1.0
    left = rollouts - int(first_M.sum())
    lacking_M = np.maximum(least_NK.ravel() - trials_M - first_M, 0.0)
    lacking_M *= min(1.0, left / max(float(lacking_M.sum()), 1.0))
    more_M = lacking_M + _fill(worth_M, trials_M + first_M + lacking_M, left - float(lacking_M.sum()))
    return (first_M + _whole(more_M, left)).astype(np.int64).reshape(worth_NK.shape)


def _fill(worth_M: Floats, trials_M: Floats, budget: float) -> Floats:
    """Real numbers x of rollouts with n + x ∝ worth where x > 0."""
    some = np.flatnonzero(worth_M > 0)
    if not some.size or budget < _ROUNDING:
        return np.zeros_like(worth_M)
    order = some[np.argsort(trials_M[some] / worth_M[some], kind="stable")]
    level_M = (budget + np.cumsum(trials_M[order])) / np.cumsum(worth_M[order])
    below = trials_M[order] / worth_M[order] < level_M
    level = level_M[np.flatnonzero(below)[-1]]
    return np.where(worth_M > 0, np.maximum(level * worth_M - trials_M, 0.0), 0.0)


def _whole(more_M: Floats, budget: int) -> Floats:
    """Rounds to whole numbers whose sum is at most the budget, by largest remainders."""
    whole_M: Floats = np.floor(more_M)
    rest = min(budget, round(float(more_M.sum()))) - int(whole_M.sum())
    whole_M[np.argsort(whole_M - more_M, kind="stable")[: max(rest, 0)]] += 1
    return whole_M


# If outcomes that are alike by chance brought an entry fewer rollouts, the chance would not average out: sums would be
# biased by a seventh of their errors. So the variance is that of any entry of such a node.
def _moments(state: QuestionState, links: Links) -> PosteriorMoments:
    """What is known of the success probabilities; before any outcome, nothing."""
    if state.nodes.trials_NK.any():
        fitted = fit(state.nodes, links)
        alike_N1 = class_bernoulli(fitted.counts, fitted.prior)[:, None]
        return replace(fitted.moments, bernoulli_NK=np.where(state.nodes.known_NK, 0.0, alike_N1))
    some_NK = np.where(state.nodes.known_NK, 0.0, 1.0)
    return PosteriorMoments(mean_NK=0.5 * some_NK, variance_NK=some_NK / 12, bernoulli_NK=_UNKNOWN * some_NK)


# P_R² v Var_R(d): what recorded tokens of the tail add (see `tails`)
def _tail_squares(state: QuestionState) -> Floats:
    """Variance that a rollout of the tail has beyond one value for all of it, [N, K, D]."""
    mass_NK = np.where(state.nodes.token_NK == TAIL, state.nodes.mass_NK, 0.0)
    spread_ND = np.stack([direction.tail_variance_N for direction in state.directions], axis=1)
    squares_NKD: Floats = _UNKNOWN * mass_NK[:, :, None] ** 2 * np.nan_to_num(spread_ND)[:, None, :]
    return squares_NKD
