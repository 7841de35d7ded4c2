"""Empirical-Bayes prior of success probabilities, fitted across nodes.

Every node belongs to a latent class (μ, κ); given the class, the success probabilities of its entries are independent
V_k ~ Beta(μκ, (1-μ)κ), and successes are binomial. Large κ: the choice of the token hardly matters. Small κ: a fork.
Only the weights of the classes, which lie on a fixed grid, are fitted.

Legend of shape suffixes: N nodes, K entries of a node, C classes, U different pairs (successes, trials), M draws.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import betaln

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opdscope_scorer.nodes import Floats, Ints, Nodes

_MEANS = np.array([0.003, 0.015, 0.04, 0.08, 0.13, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.96, 0.985, 0.997])
_CONCENTRATIONS = np.array([0.4, 1.2, 3.5, 10.0, 30.0, 100.0, 400.0, 2e3, 1e5])
# Weight of the even mixture of all classes, in nodes: it decides for a single node and is nothing among thousands.
_BASE_NODES = 10.0
_EM_STEPS = 60
_CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """A mixture of classes of nodes."""

    mean_C: Floats
    concentration_C: Floats
    weight_C: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorMoments:
    """What the posterior says of every entry's success probability V."""

    mean_NK: Floats
    """E[V]."""
    variance_NK: Floats
    """Var[V]."""
    bernoulli_NK: Floats
    """E[V (1 - V)], the variance of one rollout's outcome."""


# EM for the weights of a mixture of known components: r_uc ∝ w_c L_uc,  w_c ∝ A/C + Σ_u r_uc
def fit_prior(nodes: Nodes) -> Prior:
    """Fits the weights of the classes to the outcomes of all nodes."""
    mean_C, concentration_C = (grid.ravel() for grid in np.meshgrid(_MEANS, _CONCENTRATIONS, indexing="ij"))
    base = Prior(mean_C=mean_C, concentration_C=concentration_C, weight_C=np.full(mean_C.size, 1 / mean_C.size))
    log_likelihood_NC = _log_likelihood(nodes, base)
    likelihood_NC = np.exp(log_likelihood_NC - log_likelihood_NC.max(axis=1, keepdims=True))
    weight_C = base.weight_C
    for _ in range(_EM_STEPS):
        sums_C = weight_C * ((1 / (likelihood_NC @ weight_C)) @ likelihood_NC)
        weight_C = (_BASE_NODES * base.weight_C + sums_C) / (_BASE_NODES + len(nodes))
    return Prior(mean_C=mean_C, concentration_C=concentration_C, weight_C=weight_C)


def class_posterior(nodes: Nodes, prior: Prior) -> Floats:
    """Probability of every class at every node, [N, C]."""
    log_NC = _log_likelihood(nodes, prior)
    joint_NC = np.exp(log_NC - log_NC.max(axis=1, keepdims=True)) * prior.weight_C
    posterior_NC: Floats = joint_NC / joint_NC.sum(axis=1, keepdims=True)
    return posterior_NC


def posterior_moments(nodes: Nodes, prior: Prior) -> PosteriorMoments:
    """Moments of every entry's success probability, given all outcomes of its node. Known values have no variance."""
    class_NC = class_posterior(nodes, prior)
    pairs_U2, index_NK = _pairs(nodes)
    a_UC = prior.mean_C * prior.concentration_C + pairs_U2[:, :1]
    total_UC = prior.concentration_C + pairs_U2[:, 1:]
    first_NK = _mix(class_NC, a_UC / total_UC, index_NK)
    second_NK = _mix(class_NC, a_UC * (a_UC + 1) / (total_UC * (total_UC + 1)), index_NK)
    value_NK = nodes.successes_NK.astype(np.float64)
    return PosteriorMoments(
        mean_NK=np.where(nodes.known_NK, value_NK, first_NK),
        variance_NK=np.where(nodes.known_NK, 0.0, np.maximum(second_NK - first_NK**2, 0.0)),
        bernoulli_NK=np.where(nodes.known_NK, 0.0, first_NK - second_NK),
    )


# E[V(1 - V)] = μ(1 - μ) κ/(1 + κ) given the class
def class_bernoulli(nodes: Nodes, prior: Prior) -> Floats:
    """Variance of the outcome of any entry of a node, whichever: an entry's own outcomes hardly move it."""
    spread_C = prior.mean_C * (1 - prior.mean_C) * prior.concentration_C / (1 + prior.concentration_C)
    bernoulli_N: Floats = class_posterior(nodes, prior) @ spread_C
    return bernoulli_N


def draw_values(nodes: Nodes, prior: Prior, *, seed: int, draws: int) -> Iterator[tuple[Floats, Floats]]:
    """Posterior draws of success probabilities [M, K], and as many standard normals [M] for other uses, node by node.

    The draws of a node depend on the seed, its key, its outcomes and the prior, and not on the order of its entries.
    """
    class_NC = class_posterior(nodes, prior)
    a_C, b_C = prior.mean_C * prior.concentration_C, (1 - prior.mean_C) * prior.concentration_C
    successes_NK = np.where(nodes.known_NK, 0, nodes.successes_NK)
    failures_NK = nodes.trials_NK - successes_NK
    for u, key in enumerate(nodes.keys):
        random = np.random.default_rng(_seed(seed, key))
        order_K = np.argsort(nodes.token_NK[u], kind="stable")[::-1]
        levels_M = (np.arange(draws) + random.random()) / draws
        chosen_M = np.searchsorted(np.cumsum(class_NC[u]), levels_M).clip(max=a_C.size - 1)
        value_MK = np.empty((draws, order_K.size))
        value_MK[:, order_K] = random.beta(
            a_C[chosen_M, None] + successes_NK[u, order_K], b_C[chosen_M, None] + failures_NK[u, order_K]
        )
        value_MK[:, nodes.known_NK[u]] = nodes.successes_NK[u, nodes.known_NK[u]]
        yield value_MK, random.standard_normal(draws)


# log L_uc = Σ_k log [ B(a + s_k, b + n_k - s_k) / B(a, b) ], up to what no class changes
def _log_likelihood(nodes: Nodes, prior: Prior) -> Floats:
    pairs_U2, index_NK = _pairs(nodes)
    a_C, b_C = prior.mean_C * prior.concentration_C, (1 - prior.mean_C) * prior.concentration_C
    successes_U1, trials_U1 = pairs_U2[:, :1], pairs_U2[:, 1:]
    table_UC = betaln(a_C + successes_U1, b_C + trials_U1 - successes_U1) - betaln(a_C, b_C)
    total_NC = np.zeros((len(nodes), a_C.size))
    for index_N in index_NK.T:
        total_NC += table_UC[index_N]
    return total_NC


def _pairs(nodes: Nodes) -> tuple[Floats, Ints]:
    """Different pairs (successes, trials) [U, 2], and which of them each entry has [N, K]. Known values say nothing."""
    successes_NK = np.where(nodes.known_NK, 0, nodes.successes_NK)
    pairs_U, index = np.unique((successes_NK + 1j * nodes.trials_NK).ravel(), return_inverse=True)
    return np.stack([pairs_U.real, pairs_U.imag], axis=1), index.reshape(successes_NK.shape)


# Σ_c r_uc t_c of the entry's pair
def _mix(class_NC: Floats, table_UC: Floats, index_NK: Ints) -> Floats:
    mixed_NK = np.empty(index_NK.shape)
    for start in range(0, len(index_NK), _CHUNK):
        part = slice(start, start + _CHUNK)
        mixed_NK[part] = np.einsum("nc,nkc->nk", class_NC[part], table_UC[index_NK[part]])
    return mixed_NK


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest())
