"""What the benchmark measures of policies, intervals and cost. All numbers are plain floats, ready for JSON.

Legend of shape suffixes: R rollouts, B repetitions, N nodes of a rollout, D directions.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from _policies import DEFAULT, POLICIES, kept, numerators, spend
from _worlds import STRATA, TEACHERS, World, observed, simulate, tilted
from opdscope_scorer.allocation import QuestionState
from opdscope_scorer.chain import noise, smooth
from opdscope_scorer.estimation import estimate
from opdscope_scorer.intervals import Status
from opdscope_scorer.links import chain_links, no_links
from opdscope_scorer.pooling import pool
from opdscope_scorer.scoring import Judgement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from opdscope_scorer.estimation import Estimate

    Floats = NDArray[np.float64]

JUDGEMENT = Judgement()
_Z = 1.96
_ROUNDING = 1e-9


def policies(worlds: Sequence[World], repetitions: int, per_candidate: int) -> dict[str, Any]:
    """Errors of the pooled numerator under every policy at equal budget; the worst direction counts."""
    played = {
        name: [_errors(w, r, name, repetitions, per_candidate) for r, w in enumerate(worlds)] for name in POLICIES
    }
    mse = {name: np.array([(error_BD**2).mean(axis=0) for error_BD, _ in one]) for name, one in played.items()}
    result: dict[str, Any] = {}
    for name, one in played.items():
        to_uniform_D, to_entropy_D = (
            _safe_ratio(np.median(mse[base], axis=0), np.median(mse[name], axis=0))
            for base in ("uniform", "entropy_uniform")
        )
        result[name] = {
            "mse": float(np.median(mse[name].mean(axis=1))),
            "ratio_to_uniform": float(to_uniform_D.min()),
            "ratio_to_uniform_median_direction": float(np.median(to_uniform_D)),
            "ratio_to_entropy_uniform": float(to_entropy_D.min()),
            "median_of_ratios_to_uniform": float(np.median(_safe_ratio(mse["uniform"], mse[name]), axis=0).min()),
            "coverage": float(np.mean([abs(z_BD) <= _Z for _, z_BD in one])),
            **_bias([error_BD for error_BD, _ in one], mse[name]),
        }
    return result


def _errors(world: World, number: int, policy: str, repetitions: int, per_candidate: int) -> tuple[Floats, Floats]:
    """Errors of the numerators, and the same in standard errors, [B, D]."""
    keep_N = kept(world, policy)
    truth_D = world.numerator_DN[:, keep_N].sum(axis=1)
    errors, scores = [], []
    for repetition in range(repetitions):
        random = np.random.default_rng([number, repetition])
        value_D, error_D = numerators(spend(world, policy, random, per_candidate), keep_N)
        errors.append(value_D - truth_D)
        scores.append(errors[-1] / np.maximum(error_D, np.finfo(np.float64).tiny))
    return np.array(errors), np.array(scores)


# E[bias̄²] - mse/B is the squared bias: the mean of B repetitions is off by noise alone as well
def _bias(errors: Sequence[Floats], mse_RD: Floats) -> dict[str, float]:
    """Bias in units of the RMSE, over all rollouts and directions: root mean square, and the mean with its sign."""
    bias_RD = np.array([error_BD.mean(axis=0) for error_BD in errors])
    count = len(errors[0])
    excess_RD = (_safe_ratio(bias_RD**2, mse_RD) - 1 / count) * count / max(count - 1, 1)
    return {
        "bias_to_rmse": float(np.sqrt(max(excess_RD.mean(), 0.0))),
        "signed_bias_to_rmse": float(_safe_ratio(bias_RD, np.sqrt(mse_RD)).mean()),
    }


def _safe_ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)


def intervals(worlds: Sequence[World], repetitions: int, per_candidate: int) -> dict[str, Any]:
    """Coverage and widths under the default policy."""
    found = [
        (world, estimate(_play(world, r, b, per_candidate), judgement=JUDGEMENT, seed=b))
        for r, world in enumerate(worlds)
        for b in range(repetitions)
    ]
    rows = np.concatenate([row for world, one in found for row in _node_rows(world, one)])
    pooled = np.array([row for world, one in found for row in _pooled_rows(world, one)]).reshape(-1, 3)
    covered, width, status, cosine, stratum, entries = rows.T
    called = (status == Status.HELPS) | (status == Status.HURTS)
    inner = (entries >= 3) & (np.abs(cosine) < 0.95)
    return {
        "per_candidate": per_candidate,
        "alignments": len(rows),
        "coverage": _mean(covered),
        "coverage_by_stratum": {name: _mean(covered[stratum == i]) for i, name in enumerate(STRATA)},
        "coverage_three_candidates_below_0.95": _mean(covered[inner]),
        "coverage_helps_or_hurts": _mean(covered[called]),
        "wrong_sign": _mean((status[called] == Status.HELPS) != (cosine[called] > 0)),
        "undetermined": _mean(status == Status.UNDETERMINED),
        "median_width": _median(width),
        "median_width_by_stratum": {name: _median(width[stratum == i]) for i, name in enumerate(STRATA)},
        "pooled": {
            "coverage": _mean(pooled[:, 0]),
            "coverage_independent_teacher": _mean(pooled[pooled[:, 2] == 1, 0]),
            "median_width": _median(pooled[:, 1]),
            "absent": 1 - len(pooled) / sum(len(world.directions) for world, _ in found),
        },
    }


def _play(world: World, number: int, repetition: int, per_candidate: int) -> QuestionState:
    return spend(world, DEFAULT, np.random.default_rng([number, repetition, 1]), per_candidate)


def _node_rows(world: World, found: Estimate) -> Iterator[Floats]:
    """Covered, width, status, true alignment, stratum, entries: of every alignment that exists."""
    entries_N = (world.nodes.mass_NK > 0).sum(axis=1)
    for cosine_N, one in zip(world.cosine_DN, found.alignments, strict=True):
        covered_N = (one.low_N <= cosine_N + _ROUNDING) & (cosine_N <= one.high_N + _ROUNDING)
        columns = [covered_N, one.high_N - one.low_N, one.status_N, cosine_N, world.stratum_N, entries_N]
        exists_N = (world.norm_sq_N > 1e-20) & np.isfinite(cosine_N)
        yield np.stack(columns, axis=1)[exists_N].astype(np.float64)


def _pooled_rows(world: World, found: Estimate) -> Iterator[tuple[float, float, float]]:
    """Covered, width, whether the teacher is independent: of every pooled alignment that exists."""
    for truth, sums, direction in zip(world.pooled_D, found.sums(), world.directions, strict=True):
        one = pool([sums], judgement=JUDGEMENT, seed=0)
        if one.pooled_low is not None and one.pooled_high is not None:
            covered = one.pooled_low <= truth + _ROUNDING and truth - _ROUNDING <= one.pooled_high
            yield covered, one.pooled_high - one.pooled_low, TEACHERS.get(direction.teacher) == 0.0


def first_kind(rollouts: int, per_candidate: int) -> dict[str, float]:
    """Nodes whose entries all have one success probability, called all the same; and a teacher q ∝ P exp(V/β)."""
    called, covered = [], []
    for number in range(rollouts):
        random = np.random.default_rng([number, 2])
        world = simulate(random, number)
        level = random.uniform(0.1, 0.9)
        flat = replace(world, value_NK=np.full(world.value_NK.shape, level), links=without_end(world))
        found = estimate(_play(flat, number, 0, per_candidate), judgement=JUDGEMENT, seed=0)
        called.append(np.mean([one.status_N != Status.UNDETERMINED for one in found.alignments]))
        perfect = tilted(world)
        for sums in estimate(_play(perfect, number, 0, per_candidate), judgement=JUDGEMENT, seed=0).sums():
            one = pool([sums], judgement=JUDGEMENT, seed=0)
            if one.pooled_high is not None:
                covered.append(one.pooled_high >= 1 - _ROUNDING)
    return {"called_where_all_values_are_equal": float(np.mean(called)), "tilted_teacher_covers_1": _mean(covered)}


def without_end(world: World) -> Any:  # noqa: ANN401 - links of the same type
    """The links but for the one to the known end."""
    keep = world.links.child_E >= 0
    return replace(
        world.links,
        **{name: getattr(world.links, name)[keep] for name in ("node_E", "entry_E", "child_E", "value_E", "skipped_E")},
    )


def cost(sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Seconds of both passes and of the covariance of 16 sums, on chains of many nodes; and of scoring a node."""
    world = simulate(np.random.default_rng(0), 0)
    chain, directions = {}, len(world.directions)
    for size in sizes:
        long, links = _repeated(world, size)
        function_NKD = np.tile(np.ones(long.mass_NK.shape)[:, :, None], (1, 1, directions + 1))
        bernoulli_NK = np.full(long.mass_NK.shape, 0.2)
        start = time.perf_counter()
        noise(smooth(long, links, bernoulli_NK), links, long, bernoulli_NK, function_NKD)
        chain[str(size)] = time.perf_counter() - start
    trials_NK = np.where(world.nodes.mass_NK > 0, 16, 0)
    nodes = observed(world, trials_NK, np.random.default_rng(0).binomial(trials_NK, world.value_NK))
    start = time.perf_counter()
    estimate(QuestionState(nodes=nodes, links=no_links(), directions=world.directions), judgement=JUDGEMENT, seed=0)
    return {
        "chain_seconds": chain,
        "scoring_seconds": {f"per_node_of_{directions}_directions": (time.perf_counter() - start) / len(nodes)},
    }


def _repeated(world: World, size: int) -> tuple[Any, Any]:
    """A chain of so many nodes."""
    row_N = np.arange(size) % len(world.nodes)
    entry_E = world.links.entry_E[np.arange(size) % len(world.links)]
    trials_NK = np.where(world.nodes.mass_NK[row_N] > 0, 4, 0)
    arrays = {name: getattr(world.nodes, name)[row_N] for name in ("token_NK", "mass_NK", "sum_sq_NK", "known_NK")}
    nodes = replace(
        world.nodes,
        keys=tuple(map(str, range(size))),
        trials_NK=trials_NK,
        successes_NK=trials_NK // 2,
        support_N=world.nodes.support_N[row_N],
        **arrays,
    )
    return nodes, chain_links(entry_E.tolist(), success=1.0)


def _mean(values: Any) -> float | None:  # noqa: ANN401 - arrays and lists
    return float(np.mean(values)) if len(values) else None


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None
