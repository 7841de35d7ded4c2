"""Rollouts of which everything is known.

They are nodes with path-consistent success probabilities, links and directions; they know nothing of estimators.

Legend of shape suffixes: N nodes of a rollout, K entries of a node: candidates, then the tail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from opdscope_scorer.evidence import EvidenceNode, EvidenceTail, TeacherProbs, evidence_direction, evidence_nodes
from opdscope_scorer.links import chain_links
from opdscope_scorer.objectives import parse_objectives

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from opdscope_scorer.links import Links
    from opdscope_scorer.nodes import Direction, Nodes

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

OBJECTIVES = parse_objectives("reverse_kl,forward_kl,gkd_jsd(beta=0.5),total_variation,skew_reverse_kl(alpha=0.1)")
STRATA = ("flat", "mild", "fork", "extreme")

# Parameters of the simulation.
LENGTHS = (100, 400)
CANDIDATES = 4
ROLES = {"sure": 0.86, "mild": 0.1, "fork": 0.04}
KINDS = {"hard": 0.15, "easy": 0.15, "open": 0.7}
# A teacher's log-ratio to the student: pull · (V - J) + noise; at few nodes it disagrees much more.
TEACHERS = {"solution": 3.0, "independent": 0.0, "misleading": -2.0}
NOISE, LOUD, LOUD_SHARE = 0.6, 2.5, 0.05


@dataclass(frozen=True, kw_only=True)
class World:
    """One rollout."""

    nodes: Nodes
    """Without outcomes."""
    links: Links
    value_NK: Floats
    directions: Sequence[Direction]
    entropy_N: Floats

    @property
    def ideal_NK(self) -> Floats:
        """V - J."""
        return self.value_NK - (self.nodes.mass_NK * self.value_NK).sum(axis=1, keepdims=True)

    @property
    def norm_sq_N(self) -> Floats:
        """Squared norm of the ideal direction."""
        return (self.nodes.sum_sq_NK * self.ideal_NK**2).sum(axis=1)

    @property
    def numerator_DN(self) -> Floats:
        """Inner products of the ideal with every direction."""
        return np.stack([(direction.inner_NK * self.ideal_NK).sum(axis=1) for direction in self.directions])

    @property
    def cosine_DN(self) -> Floats:
        """Alignments; NaN where one of the directions is 0."""
        norm_DN = np.sqrt(self.norm_sq_N) * np.stack([direction.norm_N for direction in self.directions])
        return np.clip(self.numerator_DN / np.where(norm_DN > 0, norm_DN, np.nan), -1, 1)

    @property
    def pooled_D(self) -> Floats:
        """Pooled alignments."""
        distill_D = np.array([(direction.norm_N**2).sum() for direction in self.directions])
        return self.numerator_DN.sum(axis=1) / np.sqrt(self.norm_sq_N.sum() * distill_D)

    @property
    def stratum_N(self) -> Ints:
        """By the standard deviation of V under the policy restricted to what is left open, and by J."""
        mean_N = (self.nodes.mass_NK * self.value_NK).sum(axis=1)
        real_NK = self.nodes.mass_NK > 0
        low_N, high_N = np.where(real_NK, self.value_NK, 1).min(axis=1), np.where(real_NK, self.value_NK, 0).max(axis=1)
        spread_N = high_N - low_N
        extreme_N = (mean_N < 0.03) | (mean_N > 0.97)
        return np.select([extreme_N, spread_N < 0.1, spread_N < 0.4], [3, 0, 1], 2)


def simulate(random: np.random.Generator, number: int) -> World:
    """A rollout of 100 to 400 positions, every one a node."""
    length = int(random.integers(*LENGTHS, endpoint=True))
    role_N = random.choice(len(ROLES), length, p=list(ROLES.values()))
    mass_NK = np.stack([_policy(random, list(ROLES)[role]) for role in role_N])
    taken_N = np.array([random.choice(CANDIDATES, p=p_K[:CANDIDATES] / p_K[:CANDIDATES].sum()) for p_K in mass_NK])
    kind = list(KINDS)[random.choice(len(KINDS), p=list(KINDS.values()))]
    base = {"hard": 0.015, "easy": 0.985, "open": random.uniform(0.15, 0.85)}[kind]
    success = bool(random.random() < base)
    value_NK = _values(random, [list(ROLES)[role] for role in role_N], mass_NK, taken_N, base, success=success)
    evidence = [
        _evidence(f"q{number}", t, mass_NK[t], _teachers(random, mass_NK[t], value_NK[t])) for t in range(length)
    ]
    return make_world(evidence, value_NK, chain_links(taken_N.tolist(), success=float(success)))


def _policy(random: np.random.Generator, role: str) -> Floats:
    """P of four candidates, likeliest first, and of the tail."""
    if role == "fork":
        shape_K = [3.0, 2.0, 0.8, 0.4, 0.15]
    elif role == "mild":
        shape_K = [8.0, 0.8, 0.4, 0.2, 0.1]
    else:
        off = 10 ** -random.uniform(1.5, 5)
        return np.concatenate([[1 - off], off * np.sort(random.dirichlet([0.6, 0.6, 0.6, 0.3]))[::-1]])
    p_K = np.maximum(random.dirichlet(shape_K), 1e-6)
    p_K /= p_K.sum()
    return np.concatenate([np.sort(p_K[:CANDIDATES])[::-1], p_K[CANDIDATES:]])


def _values(
    random: np.random.Generator,
    roles: Sequence[str],
    mass_NK: Floats,
    taken_N: Ints,
    base: float,
    *,
    success: bool,
) -> Floats:
    """Success probabilities from the end backwards: the taken token's is the J of the next node."""
    value_NK = np.empty(mass_NK.shape)
    following = float(success)
    for t in reversed(range(len(roles))):
        size = mass_NK.shape[1]
        if roles[t] == "fork":
            value_NK[t] = random.beta(1.0 * base, 1.0 * (1 - base), size)
        elif roles[t] == "mild":
            concentration = 12.0
            mean = 0.8 * following + 0.2 * base
            value_NK[t] = random.beta(concentration * mean + 1e-3, concentration * (1 - mean) + 1e-3, size)
        else:
            derailed_K = random.random(size) < 0.3
            value_NK[t] = np.where(derailed_K, following * random.random(size), following)
        value_NK[t, taken_N[t]] = following
        following = float(np.clip(mass_NK[t] @ value_NK[t], 0.0, 1.0))
    return value_NK


def _teachers(random: np.random.Generator, mass_K: Floats, value_K: Floats) -> list[TeacherProbs]:
    teachers = []
    for name, pull in TEACHERS.items():
        noise = LOUD if random.random() < LOUD_SHARE else NOISE
        q_K = mass_K * np.exp(pull * (value_K - mass_K @ value_K) + random.normal(0, noise, mass_K.size))
        q_K /= q_K.sum()
        teachers.append(TeacherProbs(teacher=name, candidate_probs=q_K[:-1].tolist(), tail_prob=float(q_K[-1])))
    return teachers


def _evidence(question: str, position: int, mass_K: Floats, teachers: list[TeacherProbs]) -> EvidenceNode:
    none = [0] * (mass_K.size - 1)
    return EvidenceNode(
        question_id=question,
        rollout_id=f"{question}/0",
        position=position,
        candidate_token_ids=list(range(mass_K.size - 1)),
        candidate_student_probs=mass_K[:-1].tolist(),
        candidate_successes=none,
        candidate_trials=none,
        tail=EvidenceTail(student_prob=float(mass_K[-1])),
        teachers=teachers,
    )


def make_world(evidence: list[EvidenceNode], value_NK: Floats, links: Links) -> World:
    """Reduces nodes of one rollout, and takes every direction that their teachers give."""
    nodes = evidence_nodes(evidence)
    names = [teacher.teacher for teacher in evidence[0].teachers]
    directions = []
    for name in names:
        rows = [next(teacher for teacher in node.teachers if teacher.teacher == name) for node in evidence]
        mass_NK = np.zeros(nodes.mass_NK.shape)
        for mass_K, row in zip(mass_NK, rows, strict=True):
            mass_K[: len(row.candidate_probs) + 1] = [*row.candidate_probs, row.tail_prob]
        mass_NK /= mass_NK.sum(axis=1, keepdims=True)
        directions += [evidence_direction(nodes, name, mass_NK, objective) for objective in OBJECTIVES]
    log_NK = np.log(np.where(nodes.mass_NK > 0, nodes.mass_NK, 1.0))
    return World(
        nodes=nodes,
        links=links,
        value_NK=value_NK,
        directions=directions,
        entropy_N=-(nodes.mass_NK * log_NK).sum(axis=1),
    )


def tilted(world: World) -> World:
    """The same rollout under a teacher q ∝ P exp(V/β), whose reverse KL is perfectly aligned."""
    q_NK = world.nodes.mass_NK * np.exp(2.0 * world.value_NK)
    q_NK /= q_NK.sum(axis=1, keepdims=True)
    return replace(world, directions=[evidence_direction(world.nodes, "tilted", q_NK, OBJECTIVES[0])])


def observed(world: World, trials_NK: Ints, successes_NK: Ints) -> Nodes:
    """The world's nodes with outcomes."""
    return replace(world.nodes, trials_NK=trials_NK, successes_NK=successes_NK)
