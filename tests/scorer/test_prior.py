import numpy as np
import pytest
from opdscope_scorer.nodes import Nodes
from opdscope_scorer.prior import class_bernoulli, class_posterior, draw_values, fit_prior, posterior_moments
from simulation import Floats, observe, select, values, world


def simulated(value_NV: Floats, trials: int, seed: int = 0) -> Nodes:
    """Nodes with these success probabilities, all tokens being candidates."""
    random = np.random.default_rng(seed)
    truth = world(random, value_NV, value_NV.shape[1])
    return observe(random, truth, trials, 0)[0]


def test_prior_recovers_the_kinds_of_nodes() -> None:
    """Weights are a distribution, and two thirds of homogeneous nodes are recognised as such."""
    random = np.random.default_rng(0)
    forks_NV = random.beta(0.4, 0.4, (100, 4))
    homogeneous_NV = np.full((200, 4), 0.5)

    prior = fit_prior(simulated(np.concatenate([forks_NV, homogeneous_NV]), 32))

    assert prior.weight_C.sum() == pytest.approx(1, abs=1e-12)
    assert prior.weight_C[prior.concentration_C >= 100].sum() == pytest.approx(2 / 3, abs=0.1)
    assert prior.weight_C[prior.concentration_C <= 3.5].sum() == pytest.approx(1 / 3, abs=0.1)


def test_posterior_borrows_strength_from_other_nodes() -> None:
    """Among homogeneous nodes the posterior means of one node lie closer together than its rates."""
    nodes = simulated(np.full((200, 4), 0.5), 4)

    mean_NK = posterior_moments(nodes, fit_prior(nodes)).mean_NK

    assert mean_NK.std(axis=1).mean() < 0.2 * (nodes.successes_NK / 4).std(axis=1).mean()


def test_draws_have_the_posterior_moments() -> None:
    """Means and variances of many draws are those computed exactly."""
    nodes = simulated(values(np.random.default_rng(1), np.arange(8) % 4, 4), 5)
    prior = fit_prior(nodes)
    moments = posterior_moments(nodes, prior)

    for u, (value_MK, normal_M) in enumerate(draw_values(nodes, prior, seed=1, draws=20_000)):
        np.testing.assert_allclose(value_MK.mean(axis=0), moments.mean_NK[u], atol=0.01)
        np.testing.assert_allclose(value_MK.var(axis=0), moments.variance_NK[u], atol=0.005)
        assert normal_M.std() == pytest.approx(1, abs=0.03)


def test_draws_depend_on_the_seed_and_the_node_and_not_on_its_place() -> None:
    """The same node draws the same in any batch; another seed draws otherwise."""
    nodes = simulated(values(np.random.default_rng(1), np.arange(6) % 4, 4), 5)
    prior = fit_prior(nodes)
    some, _ = select(nodes, [], [4, 1])

    whole = [value_MK for value_MK, _ in draw_values(nodes, prior, seed=1, draws=50)]
    part = [value_MK for value_MK, _ in draw_values(some, prior, seed=1, draws=50)]
    other = [value_MK for value_MK, _ in draw_values(some, prior, seed=2, draws=50)]

    np.testing.assert_array_equal(part, [whole[4], whole[1]])
    assert not np.allclose(other, part)


@pytest.mark.parametrize("successes", [0, 8])
def test_single_node_has_a_proper_posterior(successes: int) -> None:
    """One node alone gives a distribution over classes that does not rule out other success rates."""
    nodes = simulated(np.full((1, 3), successes / 8), 8)

    prior = fit_prior(nodes)
    moments = posterior_moments(nodes, prior)

    assert class_posterior(nodes, prior).sum() == pytest.approx(1, abs=1e-12)
    assert (moments.bernoulli_NK > 0.001).all()
    assert np.abs(moments.mean_NK - successes / 8).max() < 0.1


def test_variance_of_any_entry_tells_forks_from_other_nodes() -> None:
    """It is that of a coin where all entries are one, and less at forks whose entries are nearly 0 or 1."""
    random = np.random.default_rng(4)
    forks_NV = random.beta(0.1, 0.1, (100, 4))
    nodes = simulated(np.concatenate([forks_NV, np.full((100, 4), 0.5)]), 16)

    bernoulli_N = class_bernoulli(nodes, fit_prior(nodes))

    assert bernoulli_N[100:].mean() == pytest.approx(0.25, abs=0.03)
    assert bernoulli_N[:100].mean() == pytest.approx((forks_NV * (1 - forks_NV)).mean(), abs=0.05)
