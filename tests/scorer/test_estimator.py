"""The estimator against simulated outcomes with known truth, and at its limits."""

import dataclasses
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opdscope_scorer.estimator import ideal_norm, inner_product
from opdscope_scorer.nodes import concat_directions, concat_nodes
from opdscope_scorer.prior import fit_prior, posterior_moments
from opdscope_scorer.rates import exact_rates, success_rates
from opdscope_scorer.reduction import Outcomes, reduce_direction, reduce_nodes
from opdscope_scorer.scoring import Alignments, Judgement, score_nodes
from simulation import Floats, World, observe, select, values, world

JUDGEMENT = Judgement()


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Estimates of all nodes."""

    numerator_N: Floats
    bucket_numerator_N: Floats
    numerator_variance_N: Floats
    norm_sq_N: Floats
    plug_in_norm_sq_N: Floats


def estimate(truth: World, seed: int, trials: int, tail_trials: int) -> Estimates:
    """Simulates outcomes of all nodes and estimates."""
    nodes, (direction, *_) = observe(np.random.default_rng(seed), truth, trials, tail_trials)
    rates = success_rates(nodes, posterior_moments(nodes, fit_prior(nodes)))
    norm, inner = ideal_norm(nodes, rates), inner_product(nodes, rates, direction)
    return Estimates(inner.unbiased_N, inner.plug_in_N, inner.variance_N, norm.corrected_N, norm.plug_in_N)


def standard_score(errors_N: Floats) -> float:
    """Mean in units of its standard error."""
    return float(errors_N.mean() / (errors_N.std(ddof=1) / np.sqrt(errors_N.size)))


@pytest.fixture(scope="module")
def varied_tail() -> World:
    """3,000 nodes of 12 tokens, 3 of them candidates; within the tail V and d vary together."""
    random = np.random.default_rng(1)
    return world(random, values(random, random.integers(0, 4, 3000), 12), 3, pulls=[0.8])


@pytest.mark.parametrize(("trials", "tail_trials"), [(2, 2), (4, 6), (16, 16)])
def test_numerator_and_corrected_norm_are_unbiased(varied_tail: World, trials: int, tail_trials: int) -> None:
    """Their means over nodes lie within 3 standard errors of the truth, with a tail whose tokens differ."""
    estimates = estimate(varied_tail, 7, trials, tail_trials)

    assert abs(standard_score(estimates.numerator_N - varied_tail.numerator_ND[:, 0])) < 3
    assert abs(standard_score(estimates.norm_sq_N - varied_tail.norm_sq_N)) < 3


def test_without_the_corrections_both_are_biased(varied_tail: World) -> None:
    """The plug-in norm is too large, and one value for the whole tail misses its covariance with d."""
    estimates = estimate(varied_tail, 7, 4, 6)

    assert standard_score(estimates.plug_in_norm_sq_N - varied_tail.norm_sq_N) > 10
    assert standard_score(estimates.numerator_N - estimates.bucket_numerator_N) > 5


def test_numerator_and_corrected_norm_are_unbiased_without_a_tail() -> None:
    """The same where the candidates are the whole vocabulary."""
    random = np.random.default_rng(2)
    truth = world(random, values(random, random.integers(0, 4, 3000), 4), 4, pulls=[0.8])

    estimates = estimate(truth, 7, 3, 0)

    assert abs(standard_score(estimates.numerator_N - truth.numerator_ND[:, 0])) < 3
    assert abs(standard_score(estimates.norm_sq_N - truth.norm_sq_N)) < 3


@pytest.mark.parametrize("trials", [2, 4, 16])
def test_standard_error_of_the_numerator_is_that_of_its_errors(varied_tail: World, trials: int) -> None:
    """Summed over nodes, the stated variance is the squared error within 15 %."""
    estimates = estimate(varied_tail, 8, trials, trials)

    squares = ((estimates.numerator_N - varied_tail.numerator_ND[:, 0]) ** 2).sum()

    assert estimates.numerator_variance_N.sum() / squares == pytest.approx(1, abs=0.15)


LOG_P = torch.tensor([[0.5, 0.3, 0.15, 0.04, 0.01]], dtype=torch.float64).log()
D = torch.tensor([[0.2, -0.25, 0.03, 0.01, 0.01]], dtype=torch.float64)


def score_one(outcomes: Outcomes, d_NV: torch.Tensor = D, seed: int = 0) -> Alignments:
    """Scores one node of five tokens."""
    nodes = reduce_nodes(LOG_P, [outcomes], ["node"])
    direction = reduce_direction(nodes, LOG_P, d_NV, LOG_P.roll(1, 1), teacher="t", objective="o")
    return score_nodes(nodes, [direction], judgement=JUDGEMENT, seed=seed)[0]


def outcomes(successes: list[int], trials: list[int], known: list[int] | None = None, tail: int = 4) -> Outcomes:
    """Outcomes of the first tokens, and as many failures in the tail as are asked for."""
    return Outcomes(
        tokens=range(len(successes)),
        successes=successes,
        trials=trials,
        known=[bool(flag) for flag in known or [0] * len(successes)],
        tail_tokens=[3, 4, 3, 3][:tail],
        tail_successes=[False] * tail,
    )


EXTREMES = {
    "no success": outcomes([0, 0, 0], [4, 4, 4]),
    "only successes": outcomes([4, 4, 4], [4, 4, 4], tail=0),
    "one rollout each": outcomes([1, 0, 1], [1, 1, 1], tail=1),
    "some without rollouts": outcomes([3, 0, 0], [4, 4, 0], tail=0),
    "only one with rollouts": outcomes([3, 0, 0], [4, 0, 0], tail=0),
    "known values": outcomes([1, 0, 2], [0, 0, 4], [1, 1, 0]),
    "only known values": outcomes([1, 0, 1], [0, 0, 0], [1, 1, 1], tail=0),
    "one candidate": outcomes([2], [4]),
    "very many rollouts": outcomes([900_000, 100_000, 5], [1_000_000, 1_000_000, 10]),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_counts_give_estimates(name: str) -> None:
    """What must exist does, standard errors are positive unless all is known, and intervals lie within ±1."""
    scored = score_one(EXTREMES[name])

    assert np.isfinite([scored.numerator_N, scored.ideal_norm_sq_N, scored.teacher_advantage_N, scored.low_N]).all()
    assert -1 <= scored.low_N[0] <= scored.high_N[0] <= 1
    assert (scored.numerator_se_N[0] > 0) or name == "only known values"


@pytest.mark.parametrize("name", ["no success", "only successes", "only one with rollouts"])
def test_cosine_does_not_exist_where_all_rates_are_equal(name: str) -> None:
    """Rounding must not make a direction of nothing."""
    scored = score_one(EXTREMES[name])

    assert np.isnan(scored.plug_in_N[0])
    assert np.isnan(scored.alignment_N[0])


def test_node_without_any_outcome_has_an_interval_and_nothing_else() -> None:
    """Its prior is all that is known."""
    scored = score_one(outcomes([0, 0, 0], [0, 0, 0], tail=0))

    assert np.isnan([scored.numerator_N, scored.numerator_se_N, scored.plug_in_N, scored.ideal_norm_sq_N]).all()
    assert scored.high_N[0] - scored.low_N[0] > 1.5
    assert scored.status_N[0] == 4


def test_direction_of_zero_has_no_alignment() -> None:
    """A teacher that agrees with the student gives no cosine and no interval, but an inner product of 0."""
    scored = score_one(outcomes([4, 0, 2], [4, 4, 4]), torch.zeros_like(D))

    assert np.isnan([scored.plug_in_N, scored.alignment_N, scored.low_N, scored.high_N]).all()
    assert scored.numerator_N[0] == 0
    assert scored.status_N[0] == 4


def test_direction_that_does_not_exist_stays_missing() -> None:
    """A row of NaN, as objectives give where a teacher excludes what the student plays, reaches no other direction."""
    nodes = reduce_nodes(LOG_P, [outcomes([4, 0, 2], [4, 4, 4])], ["node"])
    rows = [D, torch.full_like(D, torch.nan)]
    directions = [reduce_direction(nodes, LOG_P, d_NV, LOG_P, teacher="t", objective="o") for d_NV in rows]

    good, missing = score_nodes(nodes, directions, judgement=JUDGEMENT, seed=0)

    assert np.isfinite([good.plug_in_N, good.low_N, good.numerator_N]).all()
    assert np.isnan([missing.plug_in_N, missing.low_N, missing.numerator_N, missing.numerator_se_N]).all()
    assert missing.status_N[0] == 4


def test_untried_entry_is_neutral_and_widens_the_error() -> None:
    """An entry without rollouts gets the mean of the others, and its prior variance counts in the standard error."""
    only_known = score_one(outcomes([1, 0, 0], [0, 0, 0], [1, 1, 0], tail=0))
    without = score_one(outcomes([12, 4, 0], [16, 16, 0], tail=0))

    nodes = reduce_nodes(LOG_P, [outcomes([12, 4, 0], [16, 16, 0], tail=0)], ["node"])
    mean = (0.5 * 12 + 0.3 * 4) / 16 / 0.8
    direction = reduce_direction(nodes, LOG_P, D, LOG_P, teacher="t", objective="o")
    rates = exact_rates(nodes, np.array([[12 / 16, 4 / 16, mean, mean]]))
    assert without.numerator_N[0] == pytest.approx(inner_product(nodes, rates, direction).plug_in_N[0], abs=1e-15)
    assert without.plug_in_norm_sq_N[0] == pytest.approx(ideal_norm(nodes, rates).plug_in_N[0], abs=1e-15)
    assert only_known.numerator_se_N[0] > 0


counts = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=4)


@given(pairs=counts, order=st.randoms(use_true_random=False), tail=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_order_of_candidates_does_not_matter(pairs: list[tuple[int, int]], order: Random, tail: int) -> None:
    """Permuting the candidates of a node changes nothing, intervals included."""
    rows = [(token, min(pair), max(pair)) for token, pair in enumerate(pairs)]
    shuffled = sorted(rows, key=lambda _: order.random())
    tail_tokens = [4] * tail
    both = [
        Outcomes(
            tokens=[row[0] for row in some],
            successes=[row[1] for row in some],
            trials=[row[2] for row in some],
            known=[False] * len(some),
            tail_tokens=tail_tokens,
            tail_successes=[True] * tail,
        )
        for some in (rows, shuffled)
    ]

    one, other = (score_one(some) for some in both)

    assert_alike(one, other)


@given(factor=st.floats(1e-6, 1e6), pairs=counts)
@settings(max_examples=20, deadline=None)
def test_length_of_the_direction_does_not_matter(factor: float, pairs: list[tuple[int, int]]) -> None:
    """Scaling d scales the numerator and leaves every alignment, interval and status."""
    some = outcomes([min(pair) for pair in pairs], [max(pair) for pair in pairs], tail=2 if len(pairs) < 4 else 0)

    one, other = score_one(some), score_one(some, factor * D)

    assert_alike(one, other, except_=("numerator", "distill", "covariance"))
    np.testing.assert_allclose(other.numerator_N, factor * one.numerator_N, rtol=1e-9, atol=1e-15 * factor)


def test_order_and_batches_of_nodes_do_not_matter() -> None:
    """With one prior, scoring nodes in another order or in parts gives the same, and so does the prior of all."""
    random = np.random.default_rng(5)
    truth = world(random, values(random, random.integers(0, 4, 12), 6), 3)
    nodes, directions = observe(random, truth, 6, 4)
    prior = fit_prior(nodes)
    whole = score_nodes(nodes, directions, judgement=JUDGEMENT, seed=3, prior=prior)
    batches = [[7, 11, 2], [0, 1, 3, 4, 5, 6, 8, 9, 10]]
    parts = [select(nodes, directions, rows) for rows in batches]

    for rows, (some, some_directions) in zip(batches, parts, strict=True):
        scored = score_nodes(some, some_directions, judgement=JUDGEMENT, seed=3, prior=prior)
        for one, other in zip(whole, scored, strict=True):
            assert_alike(one, other, rows=rows)
    joined = concat_nodes([some for some, _ in parts])
    joined_directions = [concat_directions(pair) for pair in zip(*(some for _, some in parts), strict=True)]
    for one, other in zip(whole, score_nodes(joined, joined_directions, judgement=JUDGEMENT, seed=3), strict=True):
        assert_alike(one, other, rows=[row for rows in batches for row in rows])


def assert_alike(
    one: Alignments, other: Alignments, *, rows: Sequence[int] | None = None, except_: tuple[str, ...] = ()
) -> None:
    """Asserts that all columns agree, of the rows of the first with all of the other."""
    for column in dataclasses.fields(Alignments):
        if column.name.endswith("_N") and not any(word in column.name for word in except_):
            expected = getattr(one, column.name)[slice(None) if rows is None else list(rows)]
            np.testing.assert_allclose(
                getattr(other, column.name), expected, rtol=1e-9, atol=1e-13, err_msg=column.name
            )
