"""Exact test of whether all entries of a node have one success probability.

Given the total of successes, the successes of the entries are then multivariate hypergeometric, whatever that
probability is. The statistic is Σ s²_k/n_k, which orders tables with the same margins as Pearson's χ² does.

Legend of shape suffixes: N nodes, K entries of a node, R random tables.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from opdscope_scorer.nodes import Floats, Ints, Nodes

# Most nodes are decided by the first tables; the others get all.
_TABLES = (200, 2000)
_DECIDED = 0.2
_ROUNDING = 1e-9


def heterogeneity_levels(nodes: Nodes, *, seed: int) -> Floats:
    """Level at which the outcomes refuse that all entries with P > 0 have one success probability.

    A known value is part of the hypothesis: one outcome against it refuses it. Without any outcome the level is 1.
    """
    null: dict[tuple[int, ...], Floats] = {}
    level_N = np.ones(len(nodes))
    successes_NK, trials_NK = _whole(nodes)
    for u in range(len(nodes)):
        real_K = nodes.mass_NK[u] > 0
        known_K = real_K & nodes.known_NK[u]
        rolled_K = real_K & (trials_NK[u] > 0)
        successes_K, trials_K = successes_NK[u, rolled_K], trials_NK[u, rolled_K]
        if known_K.any():
            level_N[u] = _level_with_known(successes_NK[u, known_K], successes_K, trials_K)
        elif 0 < successes_K.sum() < trials_K.sum() and trials_K.size > 1:
            level_N[u] = _level(successes_K, trials_K, seed, null)
    return level_N


def _whole(nodes: Nodes) -> tuple[Ints, Ints]:
    """Successes and trials as whole numbers, those after pooling rounded: no more trials than there were."""
    trials_NK = np.floor(nodes.trials_NK + _ROUNDING)
    rate_NK = nodes.successes_NK / np.where(nodes.trials_NK > 0, nodes.trials_NK, 1)
    return np.rint(np.where(nodes.known_NK, 1, trials_NK) * rate_NK).astype(np.int64), trials_NK.astype(np.int64)


def _level_with_known(known_K: Ints, successes_K: Ints, trials_K: Ints) -> float:
    """1 if every outcome agrees with the known values, and those with each other; else 0."""
    value = known_K[0]
    agrees = (known_K == value).all() and (successes_K == value * trials_K).all()
    return float(agrees)


def _level(successes_K: Ints, trials_K: Ints, seed: int, null: dict[tuple[int, ...], Floats]) -> float:
    """Monte-Carlo level (1 + number of random tables at least as uneven) / (1 + number of random tables)."""
    total = int(successes_K.sum())
    # Successes and failures may change roles, and so may entries: few different null distributions are needed.
    margins = (min(total, int(trials_K.sum()) - total), *sorted(trials_K.tolist(), reverse=True))
    statistic = _statistic(successes_K if margins[0] == total else trials_K - successes_K, trials_K)
    level = 1.0
    for tables in _TABLES:
        if (*margins, tables) not in null:
            null[*margins, tables] = _null_statistics(margins, tables, seed)
        uneven = int((null[*margins, tables] >= statistic * (1 - _ROUNDING)).sum())
        level = (1 + uneven) / (1 + tables)
        if level > _DECIDED:
            break
    return level


def _null_statistics(margins: tuple[int, ...], tables: int, seed: int) -> Floats:
    """Statistic of random tables with given margins: the total of successes, then every entry's trials."""
    name = f"{seed}/{margins}/{tables}".encode()
    random = np.random.default_rng(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()))
    tables_RK = random.multivariate_hypergeometric(margins[1:], margins[0], size=tables, method="marginals")
    statistic_R: Floats = (tables_RK.astype(np.float64) ** 2) @ (1 / np.array(margins[1:], np.float64))
    return statistic_R


def _statistic(successes_K: Ints, trials_K: Ints) -> float:
    return float((successes_K**2 / trials_K).sum())
