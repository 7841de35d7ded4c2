"""Rollouts made of recorded outcomes of a real model, in the format of `docs/estimation.md`.

Legend of shape suffixes: N nodes of a rollout, K entries of a node: candidates, then the tail.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from _worlds import World, make_world
from opdscope_scorer.evidence import EvidenceNode, EvidenceTail, TeacherProbs, evidence_nodes
from opdscope_scorer.links import chain_links

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_worlds(path: Path) -> list[World]:
    """Rollouts of recorded outcomes (one JSON object a line, the nodes of a rollout in order)."""
    rollouts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        if line.strip():
            node = json.loads(line)
            rollouts.setdefault((node["question_id"], node["rollout_id"]), []).append(node)
    return [_recorded(sorted(nodes, key=lambda node: node["position"])) for nodes in rollouts.values()]


def _recorded(records: list[dict[str, Any]]) -> World:
    """The truth is the mean of the outcomes, made path-consistent as far as nothing was skipped."""
    names = sorted(set.intersection(*({*record["candidates"][0]["teacher_probs"]} for record in records)))
    width = 1 + max(len(record["candidates"]) for record in records)
    value_NK = np.zeros((len(records), width))
    entries = [_taken(record) for record in records]
    skipped = [float(record.get("skipped_off_path_prob") or 0.0) for record in records[1:]] + [0.0]
    evidence = [_recorded_node(record, names) for record in records]
    mass_NK = evidence_nodes(evidence).mass_NK
    for t in reversed(range(len(records))):
        groups = [*records[t]["candidates"], *([records[t]["tail"]] if records[t].get("tail") else [])]
        for k, group in enumerate(groups):
            value_NK[t, k] = np.mean(group["outcomes"]) if group.get("outcomes") else 0.0
        if entries[t] >= 0 and t + 1 < len(records):
            following = float(np.clip(mass_NK[t + 1] @ value_NK[t + 1], 0.0, 1.0))
            value_NK[t, entries[t]] += (1 - skipped[t]) * (following - value_NK[t, entries[t]])
    return make_world(evidence, value_NK, chain_links(entries, success=None, skipped=skipped))


def _taken(record: dict[str, Any]) -> int:
    """Entry of the token that the rollout took, or -1."""
    tokens = [candidate["token_id"] for candidate in record["candidates"]]
    return tokens.index(record["taken_token_id"]) if record.get("taken_token_id") in tokens else -1


def _recorded_node(record: dict[str, Any], names: Sequence[str]) -> EvidenceNode:
    candidates, tail = record["candidates"], record.get("tail")
    none = [0] * len(candidates)
    return EvidenceNode(
        question_id=record["question_id"],
        rollout_id=record["rollout_id"],
        position=record["position"],
        candidate_token_ids=[candidate["token_id"] for candidate in candidates],
        candidate_student_probs=[candidate["student_prob"] for candidate in candidates],
        candidate_successes=none,
        candidate_trials=none,
        tail=EvidenceTail(student_prob=tail["student_prob"]) if tail else None,
        teachers=[
            TeacherProbs(
                teacher=name,
                candidate_probs=[candidate["teacher_probs"][name] for candidate in candidates],
                tail_prob=tail.get("teacher_probs", {}).get(name, 0.0) if tail else 0.0,
            )
            for name in names
        ],
    )
