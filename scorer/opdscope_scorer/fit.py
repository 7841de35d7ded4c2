"""Everything that estimation knows of the success probabilities of a question: prior, posterior, pooled estimates.

Pooling needs variances of outcomes, and they come from the posterior; the posterior of a linked entry needs what
pooling says of it. So pooling is done twice. Raw counts never make variances.

Legend of shape suffixes: N nodes, K entries of a node, E links.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.chain import smooth
from opdscope_scorer.prior import fit_prior, posterior_moments

if TYPE_CHECKING:
    from opdscope_scorer.chain import Chain
    from opdscope_scorer.links import Links
    from opdscope_scorer.nodes import Floats, Nodes
    from opdscope_scorer.prior import PosteriorMoments, Prior

_STEPS = 30
# What a message is worth at most, in rollouts.
_MOST = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What is known of success probabilities."""

    nodes: Nodes
    """With the outcomes as they are."""
    links: Links
    counts: Nodes
    """With `pooled_counts`."""
    prior: Prior
    moments: PosteriorMoments
    """Given `counts`."""
    bernoulli_NK: Floats
    """Variance of one rollout's outcome, with which the chain was solved."""
    chain: Chain


def fit(nodes: Nodes, links: Links, prior: Prior | None = None) -> Fit:
    """Fits prior, posterior and pooled estimates; a prior that is given is kept."""
    fitted = prior or fit_prior(nodes)
    first = _solve(nodes, links, fitted, posterior_moments(nodes, fitted).bernoulli_NK)
    if not len(links):
        return first
    fitted = prior or fit_prior(first.counts)
    bernoulli_NK = posterior_moments(first.counts, fitted).bernoulli_NK
    bernoulli_NK[links.node_E, links.entry_E] = _linked_variances(links, first.chain)
    return _solve(nodes, links, fitted, bernoulli_NK)


def _solve(nodes: Nodes, links: Links, prior: Prior, bernoulli_NK: Floats) -> Fit:
    """Pooled estimates with these variances of outcomes, and what follows from them."""
    chain = smooth(nodes, links, bernoulli_NK)
    counts = pooled_counts(nodes, links, chain) if len(links) else nodes
    return Fit(
        nodes=nodes,
        links=links,
        counts=counts,
        prior=prior,
        moments=posterior_moments(counts, prior),
        bernoulli_NK=bernoulli_NK,
        chain=chain,
    )


# V ~ Beta(nx + ½, n(1 - x) + ½):  E[V(1 - V)] = αβ / ((α + β)(α + β + 1))
def _linked_variances(links: Links, chain: Chain) -> Floats:
    """Variance of an outcome of every linked entry, from all rollouts before and after it.

    Its own hardly weigh among these; otherwise rates that are off by chance would get the larger weights.
    """
    u, k = links.node_E, links.entry_E
    mean_E = np.clip(chain.value_NK[u, k], 0.0, 1.0)
    variance_E = np.maximum(chain.spread_NK[u, k] + chain.shift_N[u] * chain.gain_NK[u, k] ** 2, 0.0)
    worth_E = rollouts_worth(mean_E, variance_E)
    alpha_E, beta_E = worth_E * mean_E + 0.5, worth_E * (1 - mean_E) + 0.5
    found_E: Floats = alpha_E * beta_E / ((alpha_E + beta_E) * (alpha_E + beta_E + 1))
    return found_E


def pooled_counts(nodes: Nodes, links: Links, chain: Chain) -> Nodes:
    """The nodes with what links say of their entries counted as rollouts, not whole ones.

    Only the rollouts after a node count here, so that a node's entries stay independent of each other.
    """
    worth_E = np.where(chain.cut_E, 0.0, rollouts_worth(chain.message_value_E, chain.message_variance_E))
    successes_NK, trials_NK = nodes.successes_NK.astype(np.float64), nodes.trials_NK.astype(np.float64)
    successes_NK[links.node_E, links.entry_E] += worth_E * chain.message_value_E
    trials_NK[links.node_E, links.entry_E] += worth_E
    return replace(nodes, successes_NK=successes_NK, trials_NK=trials_NK)


# n with m'(1 - m')/n = q,  m' = (nm + 1)/(n + 2);  geometric means of old and new n do not oscillate
def rollouts_worth(mean_E: Floats, variance_E: Floats) -> Floats:
    """Number of rollouts that would give an estimate of this variance."""
    variance_E = np.maximum(variance_E, 0.1 / _MOST**2)
    worth_E = np.ones_like(mean_E)
    for _ in range(_STEPS):
        smooth_E = (worth_E * mean_E + 1) / (worth_E + 2)
        worth_E = np.sqrt(worth_E * smooth_E * (1 - smooth_E) / variance_E)
    return np.minimum(worth_E, _MOST)
