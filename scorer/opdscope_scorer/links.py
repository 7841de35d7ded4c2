"""Which node follows on which token: the equalities V_u(y_t) = J(u') along the rollouts of a question.

The nodes of a question form a forest: nodes with the same prefix are one node, whichever rollout they were chosen on.

Legend of shape suffixes: L output positions of a rollout, E links.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opdscope_scorer.nodes import Bools, Floats, Ints

END = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Equalities between an entry's success probability and what follows the entry.

    Invariants: a link comes after the one that leads to its node; a node is led to once, an entry leads on once.
    """

    node_E: Ints
    """The node of the entry."""
    entry_E: Ints
    """The entry, as a column of `Nodes`; a candidate without a known value."""
    child_E: Ints
    """The next chosen node, or `END`."""
    value_E: Floats
    """Success of the rollout where it ends; 0 elsewhere."""
    skipped_E: Floats
    """Bound of the error of the equality: the probability to leave the path between the two."""

    def __len__(self) -> int:
        """Number of links."""
        return self.node_E.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A complete rollout and which of its positions are chosen."""

    tokens: Sequence[int]
    off_path_L: Floats
    """Probability of every other token than the one taken."""
    success: bool
    positions: Sequence[int]
    """The chosen positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node is, on the first rollout that passes it."""

    path: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """The different nodes of some rollouts. A prefix that rollouts share is one node."""

    places: tuple[Place, ...]
    passed: tuple[tuple[tuple[int, int], ...], ...]
    """Of every rollout, the (node, position) that it passes, chosen on it or on another one."""

    def of_path(self, path: int) -> list[int]:
        """The nodes on a rollout, in the order of their positions."""
        return [node for node, _ in self.passed[path]]


def no_links() -> Links:
    """Nodes that know nothing of each other."""
    none = np.zeros(0, np.int64)
    return Links(node_E=none, entry_E=none, child_E=none, value_E=np.zeros(0), skipped_E=np.zeros(0))


def uncut(links: Links, cut_E: Bools) -> Links:
    """The links that are not cut."""
    return Links(**{f.name: getattr(links, f.name)[~cut_E] for f in fields(Links)})


def plant(paths: Sequence[Path]) -> Forest:
    """Finds the different nodes of the rollouts, by rollout and position, and all nodes that each rollout passes."""
    states = _prefixes(paths)
    node_of: dict[int, int] = {}
    places: list[Place] = []
    for p, (path, states_L) in enumerate(zip(paths, states, strict=True)):
        for position in sorted(set(path.positions)):
            if states_L[position] not in node_of:
                node_of[states_L[position]] = len(places)
                places.append(Place(path=p, position=position))
    passed = tuple(
        tuple((node_of[state], position) for position, state in enumerate(states_L) if state in node_of)
        for states_L in states
    )
    return Forest(places=tuple(places), passed=passed)


# The error of V_u(y_t) = J(u') is at most 1 - Π (1 - off) ≤ Σ off over the positions skipped
def link(forest: Forest, paths: Sequence[Path], token_NK: Ints, known_NK: Ints) -> Links:
    """Links the nodes of a forest, given the tokens of their entries. Of two ways on, the surer one counts.

    A taken token that is no entry, or whose value is known, links to nothing.
    """
    column = [{int(token): k for k, token in enumerate(token_K) if token >= 0} for token_K in token_NK]
    found: dict[tuple[int, int], tuple[float, int, float]] = {}
    for path, passed in zip(paths, forest.passed, strict=True):
        off_L = np.concatenate([[0.0], np.cumsum(path.off_path_L)])
        following = [*passed[1:], (END, len(path.tokens))]
        for (node, position), (child, next_position) in zip(passed, following, strict=True):
            entry = column[node].get(path.tokens[position])
            if entry is None or known_NK[node, entry]:
                continue
            skipped = min(float(off_L[next_position] - off_L[position + 1]), 1.0)
            way = (max(skipped, 0.0), child, float(path.success) if child == END else 0.0)
            found[node, entry] = min(found.get((node, entry), way), way)
    return _sorted(found)


def chain_links(entries: Sequence[int], *, success: float | None, skipped: Sequence[float] | None = None) -> Links:
    """Links of one rollout whose nodes are 0, 1, … in order, and which takes these entries.

    Args:
        entries: The entry taken at every node, or -1 where the chain is cut.
        success: Success of the rollout, if nothing is left open after its last node; else None.
        skipped: Off-path mass between every node and the next (or the end); none if not given.
    """
    skipped = skipped or [0.0] * len(entries)
    found = {
        (node, entry): (skipped[node], node + 1 if node + 1 < len(entries) else END, 0.0)
        for node, entry in enumerate(entries)
        if entry >= 0 and (success is not None or node + 1 < len(entries))
    }
    last = (len(entries) - 1, entries[-1]) if entries else None
    if last in found and success is not None:
        found[last] = (found[last][0], END, success)
    return _sorted(found)


def _prefixes(paths: Sequence[Path]) -> list[list[int]]:
    """A number for the prefix before every position, the same for the same prefix."""
    numbers: dict[tuple[int, int], int] = defaultdict(lambda: len(numbers) + 1)
    states = []
    for path in paths:
        state, states_L = 0, []
        for token in path.tokens:
            states_L.append(state)
            state = numbers[state, token]
        states.append(states_L)
    return states


def _sorted(found: Mapping[tuple[int, int], tuple[float, int, float]]) -> Links:
    """Links in an order where every node is reached before it is left; of two links to a node the surer one counts."""
    surest: dict[int, tuple[float, tuple[int, int]]] = {}
    for key, (skipped, child, _) in found.items():
        if child != END:
            surest[child] = min(surest.get(child, (skipped, key)), (skipped, key))
    kept = {key: way for key, way in found.items() if way[1] == END or surest[way[1]][1] == key}
    leaving: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for key in sorted(kept):
        leaving[key[0]].append(key)
    reached = {way[1] for way in kept.values()}
    waiting = [node for node in sorted(leaving, reverse=True) if node not in reached]
    order: list[tuple[int, int]] = []
    while waiting:
        keys = leaving[waiting.pop()]
        order += keys
        waiting += [child for key in reversed(keys) if (child := kept[key][1]) in leaving]
    return Links(
        node_E=np.array([key[0] for key in order], np.int64),
        entry_E=np.array([key[1] for key in order], np.int64),
        child_E=np.array([kept[key][1] for key in order], np.int64),
        value_E=np.array([kept[key][2] for key in order], np.float64),
        skipped_E=np.array([kept[key][0] for key in order], np.float64),
    )
