"""Path-consistent pooling against dense least squares."""

import numpy as np
import pytest
from numpy.typing import NDArray
from opdscope_scorer.chain import adjoint, eliminate, noise, smooth
from opdscope_scorer.links import END, Links, Path, chain_links, link, no_links, plant
from opdscope_scorer.nodes import Nodes, no_tail_rollouts

Floats = NDArray[np.float64]


def random_forest(random: np.random.Generator, nodes: int, entries: int) -> Links:
    """Links of random nodes to earlier ones, some of which end."""
    node, entry, child = [], [], []
    free = [(0, k) for k in range(entries)]
    for new in range(1, nodes):
        if random.random() < 0.9:
            u, k = free.pop(random.integers(len(free)))
            node.append(u), entry.append(k), child.append(new)
        free += [(new, k) for k in range(entries)]
    u, k = free.pop(random.integers(len(free)))
    arrays = (np.array([*some, last], np.int64) for some, last in ((node, u), (entry, k), (child, END)))
    node_E, entry_E, child_E = arrays
    order = np.argsort(node_E, kind="stable")
    return Links(
        node_E=node_E[order],
        entry_E=entry_E[order],
        child_E=child_E[order],
        value_E=np.where(child_E[order] == END, 1.0, 0.0),
        skipped_E=np.zeros(node_E.size),
    )


def make_nodes(random: np.random.Generator, links: Links, nodes: int, entries: int, none: float = 0.0) -> Nodes:
    """Nodes with random outcomes; linked entries often have none, and others a share of `none`."""
    shape = (nodes, entries)
    trials_NK = random.integers(1, 20, shape) * (random.random(shape) >= none)
    known_NK = random.random(shape) < 0.1
    known_NK[links.node_E, links.entry_E] = False
    trials_NK[known_NK] = 0
    trials_NK[links.node_E, links.entry_E] *= random.integers(0, 2, len(links))
    mass_NK = random.dirichlet(np.ones(entries), nodes)
    return Nodes(
        keys=tuple(map(str, range(nodes))),
        token_NK=np.tile(np.arange(entries), (nodes, 1)),
        mass_NK=mass_NK,
        sum_sq_NK=mass_NK**2,
        successes_NK=np.where(known_NK, random.integers(0, 2, shape), random.binomial(trials_NK, 0.4)),
        trials_NK=trials_NK,
        known_NK=known_NK,
        support_N=np.ones(nodes, np.int64),
        tail=no_tail_rollouts(),
    )


def dense(nodes: Nodes, links: Links, bernoulli_NK: Floats) -> tuple[Floats, Floats, Floats]:
    """Estimates, covariance and coefficients of all rates, by elimination and the normal equations."""
    size, width = nodes.token_NK.shape
    informed_NK = (nodes.trials_NK > 0) | nodes.known_NK
    informed_NK[links.node_E, links.entry_E] = True
    mass_NK = nodes.mass_NK * informed_NK / (nodes.mass_NK * informed_NK).sum(axis=1, keepdims=True)
    follows = {(int(u), int(k)): e for e, (u, k) in enumerate(zip(links.node_E, links.entry_E, strict=True))}
    free = [(u, k) for u in range(size) for k in range(width) if (u, k) not in follows]
    free = [(u, k) for u, k in free if nodes.trials_NK[u, k] > 0]
    number = {pair: i for i, pair in enumerate(free)}
    design, constant = np.zeros((size * width, len(free))), np.zeros(size * width)
    for u in reversed(range(size)):
        for k in range(width):
            row = u * width + k
            if (u, k) in number:
                design[row, number[u, k]] = 1
            elif (u, k) in follows:
                child = int(links.child_E[follows[u, k]])
                rows = slice(child * width, (child + 1) * width)
                constant[row] = 1.0 if child == END else mass_NK[child] @ constant[rows]
                design[row] = 0.0 if child == END else mass_NK[child] @ design[rows]
            elif nodes.known_NK[u, k]:
                constant[row] = nodes.successes_NK[u, k]
    rolled = (nodes.trials_NK > 0).ravel()
    observed, offset = design[rolled], constant[rolled]
    precision = (nodes.trials_NK.ravel() / np.maximum(bernoulli_NK.ravel(), 1e-300))[rolled]
    rate = (nodes.successes_NK.ravel() / np.maximum(nodes.trials_NK.ravel(), 1))[rolled]
    covariance = np.linalg.inv(observed.T @ (precision[:, None] * observed))
    solve = covariance @ (observed.T * precision)
    coefficients = np.zeros((size * width, size * width))
    coefficients[:, rolled] = design @ solve
    value = design @ (solve @ (rate - offset)) + constant
    return value.reshape(size, width), design @ covariance @ design.T, coefficients


CASES = [(seed, nodes, entries) for seed in range(6) for nodes, entries in ((1, 2), (2, 3), (7, 3), (25, 4))]


@pytest.mark.parametrize(("seed", "size", "entries"), CASES)
def test_two_passes_equal_dense_least_squares(seed: int, size: int, entries: int) -> None:
    """Estimates, covariance within nodes and coefficients of linear functions are those of the normal equations."""
    random = np.random.default_rng(seed)
    links = random_forest(random, size, entries)
    nodes = make_nodes(random, links, size, entries, none=0.1)
    informed_NK = (nodes.trials_NK > 0) | nodes.known_NK
    informed_NK[links.node_E, links.entry_E] = True
    bernoulli_NK = random.uniform(0.01, 0.25, nodes.token_NK.shape)
    function_NKD = random.normal(size=(size, entries, 2)) * informed_NK[:, :, None]

    chain = smooth(nodes, links, bernoulli_NK, tolerance=np.inf)

    value_NK, covariance, coefficients = dense(nodes, links, bernoulli_NK)
    np.testing.assert_allclose(chain.value_NK[informed_NK], value_NK[informed_NK], atol=1e-10)
    for u in range(size):
        gain_K = chain.gain_NK[u]
        ours = np.diag(chain.spread_NK[u]) + chain.shift_N[u] * np.outer(gain_K, gain_K)
        rows = slice(u * entries, (u + 1) * entries)
        np.testing.assert_allclose(ours, covariance[rows, rows], atol=1e-10)
    rate_NKD, _ = adjoint(chain, links, function_NKD)
    flat = function_NKD.reshape(-1, 2)
    np.testing.assert_allclose(rate_NKD.reshape(-1, 2) * (nodes.trials_NK.reshape(-1, 1) > 0), coefficients.T @ flat, atol=1e-10)
    parts = noise(chain, links, nodes, bernoulli_NK, function_NKD)
    np.testing.assert_allclose(parts.T @ parts, flat.T @ covariance @ flat, atol=1e-10)
