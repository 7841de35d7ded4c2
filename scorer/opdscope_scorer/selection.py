"""Which positions of a rollout become nodes, and which tokens are forced there.

Legend of shape suffixes: L output positions of a rollout, N nodes, V tokens of the vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdscope_scorer.registry import Registry


@dataclass(frozen=True)
class NodeSelection:
    """Which positions become nodes."""

    selector: str
    max_nodes: int | None = None
    min_entropy_nats: float = 0.0
    positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class CandidateSelection:
    """Which tokens are forced, besides the one that was taken."""

    student_top_k: int
    teacher_top_k: int
    min_student_prob: float = 0.0
    """Teachers' tokens that the student would play more rarely than this stay in the tail."""


Selector = Callable[[NodeSelection, Tensor], list[int]]

SELECTORS: Registry[Selector] = Registry("node selector")


def select_nodes(selection: NodeSelection, entropy_L: Tensor) -> list[int]:
    """Return the chosen positions in ascending order, given the student's entropy at every one."""
    return SELECTORS.get(selection.selector)(selection, entropy_L)


def all_nodes(selection: NodeSelection, entropy_L: Tensor) -> list[int]:
    """Every position, or the first `max_nodes`."""
    return list(range(len(entropy_L)))[: selection.max_nodes]


def entropy_nodes(selection: NodeSelection, entropy_L: Tensor) -> list[int]:
    """The `max_nodes` positions where the student is least certain, of those above `min_entropy_nats`."""
    order = torch.argsort(entropy_L, descending=True, stable=True).tolist()
    uncertain = [position for position in order if entropy_L[position] >= selection.min_entropy_nats]
    return sorted(uncertain[: selection.max_nodes])


def explicit_nodes(selection: NodeSelection, entropy_L: Tensor) -> list[int]:
    """The positions that the caller names, but for those past the end."""
    return sorted({position for position in selection.positions if position < len(entropy_L)})


SELECTORS.add("all", all_nodes)
SELECTORS.add("entropy", entropy_nodes)
SELECTORS.add("explicit", explicit_nodes)


def select_candidates(
    selection: CandidateSelection, log_p_NV: Tensor, teachers_log_q_NV: Sequence[Tensor], taken_N: Sequence[int]
) -> list[list[int]]:
    """Return the tokens to be forced at every node, likeliest first: those of student and teachers, and the taken one.

    Tokens that the sampling policy excludes are left out: no update that keeps the policy's support can reach them.
    """
    chosen = [_top(log_p_NV, selection.student_top_k)]
    for log_q_NV in teachers_log_q_NV:
        reachable_NV = log_p_NV.exp() >= selection.min_student_prob
        top_NK = _top(log_q_NV, selection.teacher_top_k)
        chosen.append([[k for k in row if reachable_NV[n, k]] for n, row in enumerate(top_NK)])
    return [
        _likeliest_first({taken, *(k for rows in chosen for k in rows[n])}, log_p_NV[n], keep=taken)
        for n, taken in enumerate(taken_N)
    ]


def _top(log_prob_NV: Tensor, k: int) -> list[list[int]]:
    if k == 0:
        return [[] for _ in log_prob_NV]
    rows: list[list[int]] = log_prob_NV.topk(min(k, log_prob_NV.shape[-1]), dim=-1).indices.tolist()
    return rows


def _likeliest_first(tokens: set[int], log_p_V: Tensor, keep: int) -> list[int]:
    played = [token for token in tokens if token == keep or log_p_V[token] > -torch.inf]
    return sorted(played, key=lambda token: (-float(log_p_V[token]), token))
