"""Estimated success probabilities with their variances: of every entry by itself, or pooled along rollouts.

An entry without rollouts gets the node's mean: that is neutral, its part of g is 0. It equals taking the policy
over the tried entries alone. Its prior variance counts in the standard error.

Legend of shape suffixes: N nodes, K entries of a node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.nodes import PADDING, row_sum

if TYPE_CHECKING:
    from opdscope_scorer.fit import Fit
    from opdscope_scorer.nodes import Bools, Floats, Nodes
    from opdscope_scorer.prior import PosteriorMoments


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Estimated success probabilities, and the policy over the entries that have one."""

    tried_NK: Bools
    """Whether the entry has rollouts or a known value."""
    reference_N: Floats
    """Rate of the likeliest tried entry."""
    shifted_NK: Floats
    """Rate less `reference`: exactly 0 where all are equal."""
    mass_NK: Floats
    """π over the tried entries."""
    sum_sq_NK: Floats
    """w of the tried entries."""
    unbiased_NK: Floats
    """Variance of the rate: V̂(1 - V̂)/(n - 1), or the smoothed one where n = 1."""
    smooth_NK: Floats
    """The same from the posterior, E[V(1 - V)]/n: not 0 at 0 or n successes, and fit for standard errors."""
    pair_NK: Floats
    """n/(n - 1), or 1 where that does not exist."""
    untried_NK: Floats
    """Posterior variance of V where there are no rollouts."""
    gain_NK: Floats
    """G."""
    shift_N: Floats
    """ρ."""

    @property
    def mean_N(self) -> Floats:
        """J less `reference`."""
        return row_sum(self.mass_NK * self.shifted_NK)


def success_rates(nodes: Nodes, posterior: PosteriorMoments) -> Rates:
    """Success rates of all entries with two kinds of variance."""
    tried_NK = (nodes.trials_NK > 0) | nodes.known_NK
    trials_NK = np.maximum(nodes.trials_NK, 1)
    rate_NK = nodes.successes_NK / trials_NK
    smooth_NK = np.where(nodes.trials_NK > 0, posterior.bernoulli_NK / trials_NK, 0.0)
    others_NK = np.maximum(trials_NK - 1, 1)
    twice_NK = nodes.trials_NK > 1
    return replace(
        _rates(nodes, rate_NK, tried_NK),
        unbiased_NK=np.where(twice_NK, rate_NK * (1 - rate_NK) / others_NK, smooth_NK),
        smooth_NK=smooth_NK,
        pair_NK=np.where(twice_NK, trials_NK / others_NK, 1.0),
        untried_NK=np.where(tried_NK | (nodes.mass_NK == 0), 0.0, posterior.variance_NK),
    )


def pooled_rates(fit: Fit) -> Rates:
    """Least-squares estimates under the links of the nodes. Without links, the same as `success_rates`."""
    nodes, chain = fit.nodes, fit.chain
    linked_NK = np.zeros(nodes.token_NK.shape, np.bool_)
    linked_NK[fit.links.node_E, fit.links.entry_E] = ~chain.cut_E
    plain = success_rates(nodes, fit.moments)
    return replace(
        _rates(nodes, chain.value_NK, chain.informed_NK),
        unbiased_NK=np.where(linked_NK, chain.spread_NK, plain.unbiased_NK),
        smooth_NK=chain.spread_NK,
        pair_NK=np.where(linked_NK, 1.0, plain.pair_NK),
        untried_NK=np.where(chain.informed_NK | (nodes.mass_NK == 0), 0.0, fit.moments.variance_NK),
        gain_NK=chain.gain_NK,
        shift_N=chain.shift_N,
    )


def exact_rates(nodes: Nodes, value_NK: Floats) -> Rates:
    """Success probabilities that are given, and not estimated from the nodes' outcomes: they have no variance."""
    return _rates(nodes, value_NK, nodes.token_NK != PADDING)


def _rates(nodes: Nodes, rate_NK: Floats, tried_NK: Bools) -> Rates:
    """Rates without variance."""
    likeliest_N1 = np.argmax(np.where(tried_NK, nodes.mass_NK, -1.0), axis=1)[:, None]
    reference_N1 = np.take_along_axis(rate_NK, likeliest_N1, axis=1)
    mass_NK = np.where(tried_NK, nodes.mass_NK, 0.0)
    mass_NK = mass_NK / np.maximum(mass_NK.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    shifted_NK = np.where(tried_NK, rate_NK - reference_N1, 0.0)
    none_NK = np.zeros_like(mass_NK)
    return Rates(
        tried_NK=tried_NK,
        reference_N=reference_N1[:, 0],
        shifted_NK=np.where(tried_NK, shifted_NK, (mass_NK * shifted_NK).sum(axis=1, keepdims=True)),
        mass_NK=mass_NK,
        sum_sq_NK=np.where(tried_NK, nodes.sum_sq_NK, 0.0),
        unbiased_NK=none_NK,
        smooth_NK=none_NK,
        pair_NK=np.ones_like(mass_NK),
        untried_NK=none_NK,
        gain_NK=none_NK,
        shift_N=np.zeros(len(mass_NK)),
    )
