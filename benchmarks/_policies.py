"""How each policy spends a budget on a rollout, and what it then says of the pooled numerator.

Legend of shape suffixes: N nodes, K entries of a node, D directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from _worlds import World, observed
from opdscope_scorer.allocation import SHARES, QuestionState, plan_round, round_size
from opdscope_scorer.chain import noise
from opdscope_scorer.estimator import coefficients, neutral
from opdscope_scorer.fit import fit
from opdscope_scorer.links import no_links
from opdscope_scorer.rates import pooled_rates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

DEFAULT = "pooling_and_allocation"
POLICIES = ("uniform", "entropy_uniform", "allocation", "pooling", DEFAULT)
# Share of the nodes that the entropy selector keeps.
KEPT = 0.2


def kept(world: World, policy: str) -> Bools:
    """Nodes whose sum the policy estimates."""
    if policy != "entropy_uniform":
        return np.ones(len(world.nodes), np.bool_)
    return world.entropy_N >= np.quantile(world.entropy_N, 1 - KEPT)


def spend(world: World, policy: str, random: np.random.Generator, per_candidate: int) -> QuestionState:
    """Spends `per_candidate` times the number of all candidates and tails."""
    real_NK = (world.nodes.mass_NK > 0) & ~world.nodes.known_NK
    budget = per_candidate * int(real_NK.sum())
    links = world.links if "pooling" in policy else no_links()
    if "allocation" not in policy:
        entries_NK = real_NK & kept(world, policy)[:, None]
        trials_NK = entries_NK * (budget // int(entries_NK.sum()))
        nodes = observed(world, trials_NK, random.binomial(trials_NK, world.value_NK))
        return QuestionState(nodes=nodes, links=links, directions=world.directions)
    trials_NK = np.zeros(real_NK.shape, np.int64)
    state = QuestionState(nodes=observed(world, trials_NK, trials_NK.copy()), links=links, directions=world.directions)
    for number in range(len(SHARES)):
        more_NK = plan_round(state, round_size(number, int(state.nodes.trials_NK.sum()), budget))
        nodes = observed(
            world,
            state.nodes.trials_NK + more_NK,
            state.nodes.successes_NK + random.binomial(more_NK, world.value_NK),
        )
        state = QuestionState(nodes=nodes, links=links, directions=world.directions)
    assert int(state.nodes.trials_NK.sum()) <= budget, "more was spent than there is"
    return state


def numerators(state: QuestionState, kept_N: Bools) -> tuple[Floats, Floats]:
    """Estimates of the numerators summed over nodes, [D], and their standard errors."""
    fitted = fit(state.nodes, state.links)
    rates = pooled_rates(fitted)
    c_DNK = [np.where(kept_N[:, None], neutral(rates, coefficients(state.nodes, d)), 0.0) for d in state.directions]
    function_NKD = np.stack(c_DNK, axis=2)
    parts = noise(fitted.chain, fitted.links, fitted.nodes, fitted.bernoulli_NK, function_NKD)
    value_D = np.einsum("nkd,nk->d", function_NKD, rates.shifted_NK)
    return value_D, np.linalg.norm(parts, axis=0)
