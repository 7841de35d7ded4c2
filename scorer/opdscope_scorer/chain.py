"""Path-consistent pooling: generalised least squares under the equalities V_u(y_t) = J(u'), in linear time.

The unknowns are the success probabilities V of all entries, observed as rates V̂ of variance σ² = v/n. Every link says
that the V of one entry is J(u') = Σ π V of the node u' that follows. The links form a forest, so that two passes solve
the problem, as a Kalman filter and Rauch-Tung-Striebel's smoother do on a chain:

up (from the leaves): J(u) from all rollouts at and after u has mean m_u = Σ π x and variance q_u = Σ π² s, where x, s
    are the entry's rate and σ², for a linked entry merged with the m and q of the node that follows;
down (from the roots): what the rollouts before u say moves J(u) by δ_u, and the entries by G δ_u, G = π s / q_u.

So the covariance of the estimates of one node is diag(s) + ρ G Gᵀ, ρ ≤ 0. The adjoint of both passes gives the
coefficients h of all rates in any linear function of the estimates, and with them its variance Σ h² v/n.

An entry without rollouts or link is neutral: it gets the mean of the node's other entries (see `estimator`). The error
of a link is bounded by the probability to leave the path between its ends, and by the mass of such entries.

Legend of shape suffixes: N nodes, K entries of a node, E links, D functions of the estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.links import END
from opdscope_scorer.nodes import row_sum

if TYPE_CHECKING:
    from opdscope_scorer.links import Links
    from opdscope_scorer.nodes import Bools, Floats, Nodes

# A link whose error may exceed this share of the standard error is cut. Errors below the same share of the floor never
# matter: no success probability is wanted more exactly.
TOLERANCE = 0.1
_FLOOR = 0.01
_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Least-squares estimates of all success probabilities."""

    value_NK: Floats
    """The estimates: of linked entries exactly the J of the node that follows."""
    after_NK: Floats
    """Estimates from the rollouts at and after the entry alone: those of a node's entries are independent."""
    spread_NK: Floats
    """s: variance of `after`."""
    gain_NK: Floats
    """G: by how much an entry follows J."""
    shift_N: Floats
    """ρ: by how much the rollouts before the node lessen the variance of J; at most 0."""
    mass_NK: Floats
    """π: P over the entries that have rollouts, a link or a known value."""
    informed_NK: Bools
    """Which those are."""
    message_value_E: Floats
    """What the link says of its entry."""
    message_variance_E: Floats
    """The variance of that; infinite where the link is cut."""
    error_E: Floats
    """Standard error that stands for the bound of a link's error, where nothing else informs its entry; else 0."""
    own_E: Floats
    """Weight of the entry's own rate against the message."""

    @property
    def cut_E(self) -> Bools:
        """Whether the link was cut."""
        return np.isinf(self.message_variance_E)


def smooth(nodes: Nodes, links: Links, bernoulli_NK: Floats, *, tolerance: float = TOLERANCE) -> Chain:
    """Solves for all success probabilities, given the variance v of one rollout's outcome of every entry.

    Links whose error may exceed `tolerance` standard errors are cut.
    """
    informed_NK, dead_E = _informed(nodes, links)
    mass_NK = np.where(informed_NK, nodes.mass_NK, 0.0)
    total_N1 = row_sum(mass_NK)[:, None]
    mass_NK = np.divide(mass_NK, total_N1, out=np.zeros_like(mass_NK), where=total_N1 > 0)
    rolled_NK = nodes.trials_NK > 0
    after_NK = nodes.successes_NK / np.maximum(nodes.trials_NK, 1)
    spread_NK = np.where(rolled_NK, np.maximum(bernoulli_NK, _TINY) / np.maximum(nodes.trials_NK, 1), 0.0)
    lacking_N = row_sum(np.where(informed_NK, 0.0, nodes.mass_NK))
    up = _Up(links, mass_NK, after_NK, spread_NK, lacking_N, rolled_NK=rolled_NK, dead_E=dead_E, tolerance=tolerance)
    variance_N1 = up.variance_N[:, None]
    gain_NK = np.divide(mass_NK * spread_NK, variance_N1, out=np.zeros_like(mass_NK), where=variance_N1 > 0)
    moved_N, shift_N = _down(links, up, after_NK, spread_NK, gain_NK)
    return Chain(
        value_NK=after_NK + gain_NK * moved_N[:, None],
        after_NK=after_NK,
        spread_NK=spread_NK,
        gain_NK=gain_NK,
        shift_N=shift_N,
        mass_NK=mass_NK,
        informed_NK=informed_NK,
        message_value_E=up.message_value_E,
        message_variance_E=up.message_variance_E,
        error_E=up.error_E,
        own_E=up.own_E,
    )


def _informed(nodes: Nodes, links: Links) -> tuple[Bools, Bools]:
    """Entries with rollouts, a known value or a link to anything that has; and the links to what has nothing."""
    informed_NK = nodes.known_NK.copy()
    informed_NK[nodes.trials_NK > 0] = True
    assert not nodes.known_NK[links.node_E, links.entry_E].any(), "a known value needs no link"
    any_N, dead_E = (informed_NK.sum(axis=1) > 0).tolist(), np.zeros(len(links), np.bool_)
    for e in reversed(range(len(links))):
        child, u = int(links.child_E[e]), int(links.node_E[e])
        dead_E[e] = child != END and not any_N[child]
        any_N[u] = any_N[u] or not dead_E[e]
    alive_E = ~dead_E
    informed_NK[links.node_E[alive_E], links.entry_E[alive_E]] = True
    return informed_NK, dead_E


class _Up:
    """The pass from the leaves to the roots. Fills the linked entries of `after` and `spread`."""

    def __init__(
        self,
        links: Links,
        mass_NK: Floats,
        after_NK: Floats,
        spread_NK: Floats,
        lacking_N: Floats,
        *,
        rolled_NK: Bools,
        dead_E: Bools,
        tolerance: float,
    ) -> None:
        """Merge what follows into every linked entry, the last ones first."""
        self.message_value_E, self.message_variance_E = np.zeros(len(links)), np.full(len(links), np.inf)
        self.error_E, self.own_E = np.zeros(len(links)), np.ones(len(links))
        free_NK = mass_NK.copy()
        free_NK[links.node_E, links.entry_E] = 0.0
        mean, variance = row_sum(free_NK * after_NK).tolist(), row_sum(free_NK**2 * spread_NK).tolist()
        bound = lacking_N.tolist()
        for e in reversed(range(len(links))):
            u, k, child = int(links.node_E[e]), int(links.entry_E[e]), int(links.child_E[e])
            pi, x, s, b = float(mass_NK[u, k]), float(after_NK[u, k]), float(spread_NK[u, k]), 0.0
            if not dead_E[e]:
                end = (float(links.value_E[e]), 0.0, 0.0)
                m, q, b = end if child == END else (mean[child], variance[child], bound[child])
                b += float(links.skipped_E[e])
                self.error_E[e], q = _tolerate(b, q, tolerance, alone=not rolled_NK[u, k])
                b = 0.0 if self.error_E[e] else b
                own = 0.0 if not rolled_NK[u, k] else 1.0 if q == np.inf else q / (q + s)
                x, s = (x, s) if own == 1 else (m + own * (x - m), own * s if own > 0 else q)
                self.message_value_E[e], self.message_variance_E[e], self.own_E[e] = m, q, own
                b *= 1 - own
                after_NK[u, k], spread_NK[u, k] = x, s
            mean[u] += pi * x
            variance[u] += pi * pi * s
            bound[u] += pi * b
        self.mean_N, self.variance_N = np.array(mean), np.array(variance)


def _tolerate(bound: float, variance: float, tolerance: float, *, alone: bool) -> tuple[float, float]:
    """Standard error for the error of a link, and the message's variance with it; infinite: to be cut.

    If an entry has nothing but its link, this is not cut: the bound then counts as a standard error.
    """
    if bound <= tolerance * max(variance**0.5, _FLOOR):
        return 0.0, variance
    return (bound, variance + bound**2) if alone else (0.0, np.inf)


# δ_child = x + G δ - m,  ρ_child = s + ρ G² - q
def _down(links: Links, up: _Up, after_NK: Floats, spread_NK: Floats, gain_NK: Floats) -> tuple[Floats, Floats]:
    """The pass from the roots to the leaves: δ and ρ of every node."""
    moved, shift = [0.0] * len(up.mean_N), [0.0] * len(up.mean_N)
    x_E, s_E, gain_E = (some_NK[links.node_E, links.entry_E].tolist() for some_NK in (after_NK, spread_NK, gain_NK))
    cut_E = np.isinf(up.message_variance_E).tolist()
    for e, (u, child) in enumerate(zip(links.node_E.tolist(), links.child_E.tolist(), strict=True)):
        if child != END and not cut_E[e]:
            moved[child] = x_E[e] + gain_E[e] * moved[u] - float(up.mean_N[child])
            shift[child] = min(s_E[e] + gain_E[e] ** 2 * shift[u] - float(up.variance_N[child]), 0.0)
    return np.array(moved), np.array(shift)


# With x̂ = x + Gδ:  λ = ∂F/∂δ,  μ = ∂F/∂m,  ξ = ∂F/∂x;  both passes backwards
def adjoint(chain: Chain, links: Links, function_NKD: Floats) -> tuple[Floats, Floats]:
    """Coefficients of all rates [N, K, D] and of the links' errors [E, D] in linear functions Σ a x̂ of the estimates.

    `function` is a, and 0 where an entry is not informed.
    """
    nodes, _, functions = function_NKD.shape
    lambda_ND = np.einsum("nkd,nk->nd", function_NKD, chain.gain_NK)
    mu_ND = np.zeros((nodes, functions))
    xi_NKD = function_NKD.copy()
    ends = list(zip(links.node_E.tolist(), links.entry_E.tolist(), links.child_E.tolist(), strict=True))
    joined = [child != END and not cut for (_, _, child), cut in zip(ends, chain.cut_E.tolist(), strict=True)]
    for e in reversed(range(len(ends))):
        u, k, child = ends[e]
        if joined[e]:
            lambda_ND[u] += chain.gain_NK[u, k] * lambda_ND[child]
    for e, (u, k, child) in enumerate(ends):
        if joined[e]:
            mu_ND[child] = -lambda_ND[child]
            xi_NKD[u, k] += lambda_ND[child]
            mu_ND[child] += (1 - chain.own_E[e]) * (xi_NKD[u, k] + chain.mass_NK[u, k] * mu_ND[u])
    xi_NKD += chain.mass_NK[:, :, None] * mu_ND[:, None, :]
    linked_ED = xi_NKD[links.node_E, links.entry_E]
    xi_NKD[links.node_E, links.entry_E] = linked_ED * chain.own_E[:, None]
    return xi_NKD, linked_ED * (1 - chain.own_E)[:, None]


# Cov = ZᵀZ,  Z = h √(v/n)
def noise(chain: Chain, links: Links, nodes: Nodes, bernoulli_NK: Floats, function_NKD: Floats) -> Floats:
    """Independent parts Z [·, D] of the errors of linear functions of the estimates: their covariance is ZᵀZ."""
    rate_NKD, error_ED = adjoint(chain, links, function_NKD)
    rolled_NK = nodes.trials_NK > 0
    scale_NK = np.sqrt(np.maximum(bernoulli_NK, _TINY)[rolled_NK] / nodes.trials_NK[rolled_NK])
    wide_E = chain.error_E > 0
    return np.concatenate([rate_NKD[rolled_NK] * scale_NK[:, None], error_ED[wide_E] * chain.error_E[wide_E, None]])


# ∂/∂V of Σ a V when every linked V is replaced by the J that it equals
def eliminate(links: Links, mass_NK: Floats, function_NKD: Floats) -> Floats:
    """Coefficients of the entries without link after those with a link are eliminated; of the latter 0."""
    free_NKD = function_NKD.copy()
    onto_ND = np.zeros((function_NKD.shape[0], function_NKD.shape[2]))
    ends = zip(links.node_E.tolist(), links.entry_E.tolist(), links.child_E.tolist(), strict=True)
    for u, k, child in ends:
        if child != END:
            onto_ND[child] = function_NKD[u, k] + mass_NK[u, k] * onto_ND[u]
    free_NKD += mass_NK[:, :, None] * onto_ND[:, None, :]
    free_NKD[links.node_E, links.entry_E] = 0.0
    return free_NKD
