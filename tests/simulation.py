"""Nodes with known success probabilities, and simulated outcomes of them.

Legend of shape suffixes: N nodes, V tokens of the vocabulary, C candidates, D directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from opdscope_scorer.nodes import Direction, Nodes, TailRollouts
from opdscope_scorer.reduction import Outcomes, reduce_direction, reduce_nodes

Floats = NDArray[np.float64]

STRATA = ("flat", "mild", "fork", "extreme")


@dataclass(frozen=True)
class World:
    """Nodes of which everything is known. The first tokens of the vocabulary are the candidates."""

    p_NV: Floats
    value_NV: Floats
    d_NVD: Floats
    candidates: int

    @property
    def numerator_ND(self) -> Floats:
        """Inner products of the ideal with each direction."""
        return np.einsum("nv,nvd->nd", self.ideal_NV, self.d_NVD)

    @property
    def norm_sq_N(self) -> Floats:
        """Squared norm of the ideal direction."""
        return (self.ideal_NV**2).sum(axis=1)

    @property
    def cosine_ND(self) -> Floats:
        """Alignment with each direction."""
        norm_ND = np.linalg.norm(self.ideal_NV, axis=1)[:, None] * np.linalg.norm(self.d_NVD, axis=1)
        return np.clip(self.numerator_ND / np.where(norm_ND > 0, norm_ND, np.nan), -1, 1)

    @property
    def ideal_NV(self) -> Floats:
        """The ideal direction."""
        return self.p_NV * (self.value_NV - (self.p_NV * self.value_NV).sum(axis=1, keepdims=True))


def values(random: np.random.Generator, stratum_N: NDArray[np.int64], vocabulary: int) -> Floats:
    """Success probabilities: nearly equal, somewhat different, very different, near 0 or 1."""
    shape = (stratum_N.size, vocabulary)
    mean_N1 = random.beta(0.8, 0.8, (stratum_N.size, 1)).clip(0.01, 0.99)
    kinds = [
        np.clip(mean_N1 + random.normal(0, 0.005, shape), 0, 1),
        random.beta(15 * mean_N1, 15 * (1 - mean_N1), shape),
        random.beta(0.8 * mean_N1, 0.8 * (1 - mean_N1), shape),
        np.abs((mean_N1 > 0.5) - random.beta(0.3, 20, shape)),
    ]
    return np.choose(stratum_N[:, None], kinds).astype(np.float64)


def world(
    random: np.random.Generator,
    value_NV: Floats,
    candidates: int,
    *,
    pulls: Sequence[float] = (0.0, 0.5),
    noise: float = 0.3,
) -> World:
    """Nodes with these values, and directions of f = pull · V + noise, one for every pull."""
    nodes, vocabulary = value_NV.shape
    weight_NV = random.gamma(random.choice([0.2, 0.5, 1.0], (nodes, 1)), size=(nodes, vocabulary)) + 1e-6
    p_NV = np.sort(weight_NV / weight_NV.sum(axis=1, keepdims=True), axis=1)[:, ::-1].copy()
    f_NVD = np.stack([pull * value_NV + random.normal(0, noise, value_NV.shape) for pull in pulls], axis=2)
    d_NVD = p_NV[:, :, None] * (f_NVD - np.einsum("nv,nvd->nd", p_NV, f_NVD)[:, None])
    return World(p_NV, value_NV, d_NVD, candidates)


def observe(random: np.random.Generator, truth: World, trials: int, tail_trials: int) -> tuple[Nodes, list[Direction]]:
    """Simulates rollouts of all candidates and of the tail, and reduces all."""
    nodes, vocabulary = truth.p_NV.shape
    log_p_NV = torch.from_numpy(truth.p_NV).log()
    outcomes = [_outcomes(random, truth, n, trials, tail_trials) for n in range(nodes)]
    reduced = reduce_nodes(log_p_NV, outcomes, [f"node {n}" for n in range(nodes)])
    uniform_NV = torch.full_like(log_p_NV, 1 / vocabulary).log()
    directions = [
        reduce_direction(
            reduced, log_p_NV, torch.from_numpy(truth.d_NVD[:, :, i]), uniform_NV, teacher="t", objective=f"o{i}"
        )
        for i in range(truth.d_NVD.shape[2])
    ]
    return reduced, directions


def rollout(random: np.random.Generator, size: int, vocabulary: int, *, pulls: Sequence[float] = (0.0, 0.5)) -> World:
    """The nodes of one rollout that takes token 0 everywhere and succeeds: V of token 0 is the J of the next node.

    One node in five is a fork; elsewhere token 0 is nearly certain.
    """
    fork_N1 = (np.arange(size) % 5 == 0)[:, None]
    off_N1 = np.where(fork_N1, random.uniform(0.3, 0.7, (size, 1)), 10 ** -random.uniform(2, 4, (size, 1)))
    p_NV = np.concatenate([1 - off_N1, off_N1 * random.dirichlet(np.ones(vocabulary - 1), size)], axis=1)
    value_NV = random.beta(0.8, 0.8, (size, vocabulary))
    following = 1.0
    for n in reversed(range(size)):
        value_NV[n, 0] = following
        following = float(np.clip(p_NV[n] @ value_NV[n], 0, 1))
    f_NVD = np.stack([pull * value_NV + random.normal(0, 0.3, value_NV.shape) for pull in pulls], axis=2)
    d_NVD = p_NV[:, :, None] * (f_NVD - np.einsum("nv,nvd->nd", p_NV, f_NVD)[:, None])
    return World(p_NV, value_NV, d_NVD, vocabulary)


def unobserved(truth: World) -> tuple[Nodes, list[Direction]]:
    """Nodes without outcomes, and their directions."""
    return observe(np.random.default_rng(0), truth, 0, 0)


def forced(random: np.random.Generator, truth: World, nodes: Nodes, more_NK: NDArray[np.int64]) -> Nodes:
    """The nodes with the outcomes of more rollouts; all tokens are candidates."""
    successes_NK = nodes.successes_NK + random.binomial(more_NK, truth.value_NV)
    return replace(nodes, trials_NK=nodes.trials_NK + more_NK, successes_NK=successes_NK)


def select(nodes: Nodes, directions: Sequence[Direction], rows: Sequence[int]) -> tuple[Nodes, list[Direction]]:
    """Some of the nodes, in the order of the rows."""
    places = {row: place for place, row in enumerate(rows)}
    chosen = [t for row in rows for t in np.flatnonzero(nodes.tail.node_T == row)]
    tail = {f.name: getattr(nodes.tail, f.name)[chosen] for f in fields(TailRollouts)}
    tail["node_T"] = np.array([places[node] for node in tail["node_T"].tolist()], np.int64)
    arrays = {f.name: getattr(nodes, f.name)[list(rows)] for f in fields(Nodes) if f.name not in {"keys", "tail"}}
    return (
        Nodes(keys=tuple(nodes.keys[row] for row in rows), tail=TailRollouts(**tail), **arrays),
        [_select(direction, rows, chosen) for direction in directions],
    )


def _select(direction: Direction, rows: Sequence[int], chosen: Sequence[int]) -> Direction:
    arrays = {f.name: getattr(direction, f.name) for f in fields(Direction)}
    taken = {
        name: value if isinstance(value, str) else value[list(chosen if name.endswith("_T") else rows)]
        for name, value in arrays.items()
    }
    return Direction(**taken)


def _outcomes(random: np.random.Generator, truth: World, n: int, trials: int, tail_trials: int) -> Outcomes:
    candidates, p_V, value_V = truth.candidates, truth.p_NV[n], truth.value_NV[n]
    tail = np.arange(candidates, p_V.size)
    tokens = random.choice(tail, size=tail_trials, p=p_V[tail] / p_V[tail].sum()) if tail.size else tail
    return Outcomes(
        tokens=range(candidates),
        successes=random.binomial(trials, value_V[:candidates]).tolist(),
        trials=[trials] * candidates,
        known=[False] * candidates,
        tail_tokens=tokens.tolist(),
        tail_successes=(random.random(tokens.size) < value_V[tokens]).tolist(),
    )
