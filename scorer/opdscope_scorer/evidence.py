"""Nodes of which only probabilities and outcome counts are known: what is wrong with them, and their alignments.

The tail, if there is one, is one pseudo-token of mass P_R, so that w_R = P_R². If Σ_R P_j² is given, the tail's tokens
share its direction in proportion to their probabilities: d_j = P_j φ with φ = d_R/P_R.

Legend of shape suffixes: N nodes, K entries of a node (candidates, the tail, padding).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from opdscope_scorer.nodes import PADDING, TAIL, Direction, Nodes, Support, masked_sum, no_tail_rollouts
from opdscope_scorer.objectives import ObjectiveInputs
from opdscope_scorer.prior import fit_prior
from opdscope_scorer.refusals import Refusal, refusals_of
from opdscope_scorer.scoring import Alignments, concat_alignments, score_nodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.nodes import Floats, Ints
    from opdscope_scorer.objectives import BoundObjective
    from opdscope_scorer.prior import Prior
    from opdscope_scorer.scoring import Judgement

# Evidence is scored in the same way wherever and whenever: it has no seed of its own.
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceTail:
    """All tokens that are not candidates, as one."""

    student_prob: float
    successes: int = 0
    trials: int = 0
    sum_sq_prob: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherProbs:
    """One teacher's probabilities of the candidates and of the tail."""

    teacher: str
    candidate_probs: Sequence[float]
    tail_prob: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceNode:
    """Outcomes and probabilities at one node; see `alignment.proto`."""

    question_id: str
    rollout_id: str
    position: int
    candidate_token_ids: Sequence[int]
    candidate_student_probs: Sequence[float]
    candidate_successes: Sequence[int]
    candidate_trials: Sequence[int]
    candidate_known: Sequence[bool] = ()
    tail: EvidenceTail | None = None
    teachers: Sequence[TeacherProbs] = field(default_factory=tuple)

    @property
    def key(self) -> str:
        """Names the node."""
        return f"{self.question_id}/{self.rollout_id}@{self.position}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredEvidence:
    """Alignments of one teacher and objective, and which nodes they are about."""

    index_N: Ints
    """Indices into the nodes that were given."""
    alignments: Alignments


def score_evidence(
    evidence: Sequence[EvidenceNode], objectives: Sequence[BoundObjective], *, judgement: Judgement
) -> tuple[list[ScoredEvidence], list[tuple[int, Refusal]]]:
    """Scores a set of nodes with one prior, for every teacher and objective; nodes that are wrong are refused by index.

    A node is scored for the teachers that it has.
    """
    refusals = [(index, refusal) for index, node in enumerate(evidence) for refusal in refusals_of(node)]
    refused = {index for index, _ in refusals}
    good = [index for index in range(len(evidence)) if index not in refused]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in good:
        groups[tuple(sorted(teacher.teacher for teacher in evidence[index].teachers))].append(index)
    if not good:
        return [], refusals
    prior = fit_prior(evidence_nodes([evidence[index] for index in good]))
    parts: dict[tuple[str, str], list[ScoredEvidence]] = defaultdict(list)
    for indices in groups.values():
        for scored in _score_group(evidence, indices, objectives, judgement, prior):
            parts[scored.alignments.teacher, scored.alignments.objective].append(scored)
    return [_merge(part) for part in parts.values()], refusals


def evidence_nodes(evidence: Sequence[EvidenceNode]) -> Nodes:
    """The nodes in reduced form, their probabilities made to sum to 1."""
    token_NK = _rows([[*node.candidate_token_ids, TAIL] for node in evidence], PADDING).astype(np.int64)
    tails = [node.tail or EvidenceTail(student_prob=0.0) for node in evidence]
    pairs = list(zip(evidence, tails, strict=True))
    mass_NK = _normalised(_rows([[*node.candidate_student_probs, tail.student_prob] for node, tail in pairs]))
    sum_sq_N = np.array([np.nan if tail.sum_sq_prob is None else tail.sum_sq_prob for tail in tails])[:, None]
    shared_NK = (token_NK == TAIL) & np.isfinite(sum_sq_N)
    successes_NK = _rows([[*node.candidate_successes, tail.successes] for node, tail in pairs])
    trials_NK = _rows([[*node.candidate_trials, tail.trials] for node, tail in pairs])
    return Nodes(
        keys=tuple(node.key for node in evidence),
        token_NK=token_NK,
        mass_NK=mass_NK,
        sum_sq_NK=np.where(shared_NK, sum_sq_N, mass_NK**2),
        successes_NK=successes_NK.astype(np.int64),
        trials_NK=trials_NK.astype(np.int64),
        known_NK=_rows([node.candidate_known for node in evidence], width=token_NK.shape[1]) > 0,
        support_N=np.array([_support(node) for node in evidence], np.int64),
        tail=no_tail_rollouts(),
    )


# inner_k = P_k d_k; in the tail inner_R = S_R φ, and its part of ‖d‖² is S_R φ²
def evidence_direction(nodes: Nodes, teacher: str, teacher_mass_NK: Floats, objective: BoundObjective) -> Direction:
    """A direction over candidates and tail as one small vocabulary."""
    inputs = ObjectiveInputs(
        log_p_NV=torch.from_numpy(nodes.mass_NK).log(), log_q_NV=torch.from_numpy(teacher_mass_NK).log(), bucketed=True
    )
    d_NK: Floats = objective.direction(inputs).numpy()
    played_NK = nodes.mass_NK > 0
    phi_NK = d_NK / np.where(played_NK, nodes.mass_NK, 1.0)
    square_NK = np.where(played_NK, nodes.sum_sq_NK * phi_NK**2, d_NK**2)
    return Direction(
        teacher=teacher,
        objective=objective.canonical,
        inner_NK=nodes.sum_sq_NK * phi_NK,
        total_NK=d_NK,
        norm_N=np.sqrt(square_NK.sum(axis=1)),
        teacher_mass_NK=teacher_mass_NK,
        tail_variance_N=np.zeros(len(nodes)),
        tail_value_T=np.zeros(0),
    )


def _score_group(
    evidence: Sequence[EvidenceNode],
    indices: Sequence[int],
    objectives: Sequence[BoundObjective],
    judgement: Judgement,
    prior: Prior,
) -> list[ScoredEvidence]:
    """Scores nodes that have the same teachers."""
    group = [evidence[index] for index in indices]
    nodes = evidence_nodes(group)
    by_name = [{teacher.teacher: teacher for teacher in node.teachers} for node in group]
    directions = []
    for name in [teacher.teacher for teacher in group[0].teachers]:
        mass_NK = _teacher_mass(nodes, [teachers[name] for teachers in by_name])
        directions += [evidence_direction(nodes, name, mass_NK, objective) for objective in objectives]
    columns = score_nodes(nodes, directions, judgement=judgement, seed=_SEED, prior=prior)
    return [ScoredEvidence(index_N=np.array(indices, np.int64), alignments=column) for column in columns]


def _teacher_mass(nodes: Nodes, teachers: Sequence[TeacherProbs]) -> Floats:
    """Gives q of all entries; what candidates lack where the node has no tail is outside of them."""
    mass_NK = _rows([[*teacher.candidate_probs, teacher.tail_prob] for teacher in teachers])
    tail_NK = nodes.token_NK == TAIL
    no_tail_N = masked_sum(nodes.mass_NK, tail_NK) == 0
    lacking_N = np.where(no_tail_N, np.maximum(1 - mass_NK.sum(axis=1), 0.0), 0.0)
    return _normalised(mass_NK + np.where(tail_NK, lacking_N[:, None], 0.0))


def _support(node: EvidenceNode) -> Support:
    return Support.BUCKETED if node.tail and node.tail.student_prob > 0 else Support.CANDIDATES


def _merge(parts: Sequence[ScoredEvidence]) -> ScoredEvidence:
    """Alignments of all groups, in the order of the nodes."""
    index_N = np.concatenate([part.index_N for part in parts])
    order_N = np.argsort(index_N)
    return ScoredEvidence(
        index_N=index_N[order_N], alignments=concat_alignments([part.alignments for part in parts], order_N)
    )


def _rows(rows: Sequence[Sequence[float]], fill: float = 0.0, *, width: int = 0) -> Floats:
    """Rows of different lengths, padded."""
    filled_NK = np.full((len(rows), max([width, *map(len, rows)])), fill)
    for filled_K, row in zip(filled_NK, rows, strict=True):
        filled_K[: len(row)] = row
    return filled_NK


def _normalised(mass_NK: Floats) -> Floats:
    total_N1: Floats = mass_NK.sum(axis=1, keepdims=True)
    return mass_NK / total_N1
