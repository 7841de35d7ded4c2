"""Path-consistent pooling against dense least squares."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from opdscope_scorer.chain import adjoint, eliminate, noise, smooth
from opdscope_scorer.links import END, Links, chain_links, no_links
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
    np.testing.assert_allclose(
        rate_NKD.reshape(-1, 2) * (nodes.trials_NK.reshape(-1, 1) > 0), coefficients.T @ flat, atol=1e-10
    )
    parts = noise(chain, links, nodes, bernoulli_NK, function_NKD)
    np.testing.assert_allclose(parts.T @ parts, flat.T @ covariance @ flat, atol=1e-10)


def chain_of(random: np.random.Generator, size: int) -> tuple[Nodes, Links]:
    """A chain of nodes with three entries, of which the first is on the path."""
    links = chain_links([0] * size, success=1.0)
    return make_nodes(random, links, size, 3), links


def test_without_links_estimates_are_the_rates() -> None:
    """Nothing is shared, and every entry has its own variance."""
    random = np.random.default_rng(1)
    nodes = make_nodes(random, no_links(), 5, 3)
    bernoulli_NK = random.uniform(0.1, 0.25, (5, 3))

    chain = smooth(nodes, no_links(), bernoulli_NK)

    rolled_NK = nodes.trials_NK > 0
    np.testing.assert_array_equal(
        chain.value_NK[rolled_NK], (nodes.successes_NK[rolled_NK] / nodes.trials_NK[rolled_NK])
    )
    np.testing.assert_allclose(chain.spread_NK[rolled_NK], bernoulli_NK[rolled_NK] / nodes.trials_NK[rolled_NK])
    np.testing.assert_array_equal(chain.shift_N, 0.0)


def test_estimates_satisfy_the_equalities() -> None:
    """Every linked entry has exactly the J of the node that follows, and the last one the known success."""
    random = np.random.default_rng(2)
    nodes, links = chain_of(random, 40)

    chain = smooth(nodes, links, np.full(nodes.mass_NK.shape, 0.2))

    j_N = (chain.mass_NK * chain.value_NK).sum(axis=1)
    np.testing.assert_allclose(chain.value_NK[:-1, 0], j_N[1:], atol=1e-12)
    assert chain.value_NK[-1, 0] == 1.0


def test_numbering_of_nodes_does_not_matter() -> None:
    """Estimates of a chain whose nodes are numbered backwards are the same, node by node."""
    random = np.random.default_rng(3)
    nodes, links = chain_of(random, 12)
    bernoulli_NK = random.uniform(0.05, 0.25, nodes.mass_NK.shape)
    backwards = replace(
        nodes,
        **{
            name: getattr(nodes, name)[::-1]
            for name in ("token_NK", "mass_NK", "sum_sq_NK", "successes_NK", "trials_NK", "known_NK")
        },
    )
    turned = replace(links, node_E=11 - links.node_E, child_E=np.where(links.child_E == END, END, 11 - links.child_E))

    one, other = smooth(nodes, links, bernoulli_NK), smooth(backwards, turned, bernoulli_NK[::-1])

    np.testing.assert_allclose(other.value_NK[::-1], one.value_NK, atol=1e-13)
    np.testing.assert_allclose(other.shift_N[::-1], one.shift_N, atol=1e-13)


def test_elimination_keeps_every_linear_function() -> None:
    """For values that satisfy the equalities, the function of the free entries is that of all, up to the known end."""
    random = np.random.default_rng(4)
    nodes, links = chain_of(random, 15)
    chain = smooth(nodes, links, np.full(nodes.mass_NK.shape, 0.2))
    other = smooth(replace(nodes, successes_NK=nodes.trials_NK // 2), links, np.full(nodes.mass_NK.shape, 0.2))
    function_NKD = random.normal(size=(15, 3, 2))

    free_NKD = eliminate(links, nodes.mass_NK, function_NKD)

    change_NK = chain.value_NK - other.value_NK
    expected_D = np.einsum("nkd,nk->d", function_NKD, change_NK)
    np.testing.assert_allclose(np.einsum("nkd,nk->d", free_NKD, change_NK), expected_D, atol=1e-12)
    assert not free_NKD[links.node_E, links.entry_E].any()


def test_links_with_large_errors_are_cut() -> None:
    """Where much was skipped an entry with rollouts keeps its own rate; small errors change nothing."""
    random = np.random.default_rng(5)
    nodes, links = chain_of(random, 6)
    nodes = replace(nodes, trials_NK=np.full((6, 3), 9), successes_NK=random.integers(0, 9, (6, 3)))
    nodes = replace(nodes, known_NK=np.zeros((6, 3), np.bool_))
    bernoulli_NK = np.full((6, 3), 0.2)

    loose = smooth(nodes, replace(links, skipped_E=np.array([0.0, 0.0, 0.4, 0.0, 0.0, 0.0])), bernoulli_NK)
    tight = smooth(nodes, replace(links, skipped_E=np.full(6, 1e-5)), bernoulli_NK)

    assert loose.cut_E.tolist() == [False, False, True, False, False, False]
    assert loose.value_NK[2, 0] == pytest.approx(
        loose.after_NK[2, 0] + loose.gain_NK[2, 0] * (loose.value_NK[1, 0] - loose.mass_NK[2] @ loose.after_NK[2])
    )
    assert loose.after_NK[2, 0] == nodes.successes_NK[2, 0] / 9
    np.testing.assert_array_equal(tight.value_NK, smooth(nodes, links, bernoulli_NK).value_NK)


def test_an_entry_with_nothing_but_an_uncertain_link_carries_its_error() -> None:
    """It is estimated from the link, and the bound of the error counts as a standard error in all that uses it."""
    nodes, links = chain_of(np.random.default_rng(6), 3)
    trials_NK = np.array([[0, 8, 8], [0, 8, 8], [0, 8, 8]])
    nodes = replace(nodes, trials_NK=trials_NK, successes_NK=trials_NK // 4, known_NK=np.zeros((3, 3), np.bool_))
    links = replace(links, skipped_E=np.array([0.0, 0.3, 0.0]))
    bernoulli_NK = np.full((3, 3), 0.2)
    function_NKD = np.zeros((3, 3, 1))
    function_NKD[1, 0] = 1.0

    chain = smooth(nodes, links, bernoulli_NK)

    parts = noise(chain, links, nodes, bernoulli_NK, function_NKD)
    without = noise(replace(chain, error_E=np.zeros(3)), links, nodes, bernoulli_NK, function_NKD)
    assert not chain.cut_E.any()
    assert (parts**2).sum() == pytest.approx((without**2).sum() + 0.3**2)


def test_a_link_to_a_node_without_outcomes_says_nothing() -> None:
    """Its entry is then one without rollouts, and gets the mean of the others."""
    nodes, _ = chain_of(np.random.default_rng(7), 2)
    trials_NK = np.array([[0, 8, 8], [0, 0, 0]])
    nodes = replace(nodes, trials_NK=trials_NK, successes_NK=trials_NK // 4, known_NK=np.zeros((2, 3), np.bool_))

    chain = smooth(nodes, chain_links([0, 0], success=None), np.full((2, 3), 0.2))

    assert not chain.informed_NK[0, 0]
    assert chain.mass_NK[0, 0] == 0
    assert np.isfinite(chain.value_NK).all()
