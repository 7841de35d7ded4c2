import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from opdscope_scorer.evidence import EvidenceNode, EvidenceTail, TeacherProbs, score_evidence
from opdscope_scorer.intervals import Status
from opdscope_scorer.nodes import Support
from opdscope_scorer.objectives import parse_objectives
from opdscope_scorer.scoring import Alignments, Judgement

OBJECTIVES = parse_objectives("reverse_kl,forward_kl,gkd_jsd(beta=0.5)")
JUDGEMENT = Judgement()
NODE = EvidenceNode(
    question_id="q1",
    rollout_id="q1/0",
    position=7,
    candidate_token_ids=[42, 7],
    candidate_student_probs=[0.7, 0.28],
    candidate_successes=[14, 1],
    candidate_trials=[16, 16],
    tail=EvidenceTail(student_prob=0.02, successes=1, trials=8),
    teachers=[TeacherProbs(teacher="answer", candidate_probs=[0.8, 0.19], tail_prob=0.01)],
)
NO_TAIL = dataclasses.replace(
    NODE,
    position=8,
    candidate_student_probs=[0.7, 0.3],
    tail=None,
    teachers=[TeacherProbs(teacher="answer", candidate_probs=[0.2, 0.8])],
)


def score(nodes: Sequence[EvidenceNode]) -> dict[tuple[str, str], tuple[list[int], Alignments]]:
    """Scores nodes that are all good."""
    scored, refusals = score_evidence(nodes, OBJECTIVES, judgement=JUDGEMENT)
    assert not refusals
    return {
        (one.alignments.teacher, one.alignments.objective): (one.index_N.tolist(), one.alignments) for one in scored
    }


def test_evidence_gives_every_teacher_and_objective() -> None:
    """A helpful and a harmful node are told apart under all objectives."""
    scored = score([NODE, NO_TAIL])

    assert list(scored) == [("answer", objective.canonical) for objective in OBJECTIVES]
    for index, alignments in scored.values():
        assert index == [0, 1]
        assert alignments.status_N.tolist() == [Status.HELPS, Status.HURTS]
        assert alignments.support_N.tolist() == [Support.BUCKETED, Support.CANDIDATES]
        np.testing.assert_allclose(alignments.coverage_N, [0.98, 1.0])
        np.testing.assert_allclose(alignments.teacher_coverage_N, [0.99, 1.0])


def test_bucket_is_one_pseudo_token() -> None:
    """Figures of a node with a tail, by the formulas."""
    _, scored = score([NODE])["answer", "reverse_kl"]

    p, q, v = np.array([0.7, 0.28, 0.02]), np.array([0.8, 0.19, 0.01]), np.array([14 / 16, 1 / 16, 1 / 8])
    g, f = p * (v - p @ v), np.log(q / p)
    d = p * (f - p @ f)
    assert scored.numerator_N[0] == pytest.approx(g @ d, rel=1e-12)
    assert scored.plug_in_N[0] == pytest.approx(g @ d / np.linalg.norm(g) / np.linalg.norm(d), rel=1e-12)
    assert scored.distill_norm_N[0] == pytest.approx(np.linalg.norm(d), rel=1e-12)
    assert scored.teacher_advantage_N[0] == pytest.approx((q - p) @ v, rel=1e-12)
    variance = v * (1 - v) / np.array([15, 15, 7])
    a = np.diag(p) - np.outer(p, p)
    bias = np.trace(a @ np.diag(variance) @ a.T)
    assert scored.ideal_norm_sq_N[0] == pytest.approx(g @ g - bias, rel=1e-12)
    assert scored.candidate_cosine_N[0] == pytest.approx(1, abs=1e-12)


def test_sum_of_squares_spreads_the_bucket_over_its_tokens() -> None:
    """Two equal tail tokens of one value are the same node, whether as candidates or as a tail with Σ P²."""
    teacher = TeacherProbs(teacher="answer", candidate_probs=[0.7, 0.1], tail_prob=0.2)
    bucket = dataclasses.replace(
        NODE,
        candidate_student_probs=[0.6, 0.3],
        tail=EvidenceTail(student_prob=0.1, successes=2, trials=8, sum_sq_prob=2 * 0.05**2),
        teachers=[teacher],
    )
    tokens = dataclasses.replace(
        bucket,
        candidate_token_ids=[42, 7, 8, 9],
        candidate_student_probs=[0.6, 0.3, 0.05, 0.05],
        candidate_successes=[14, 1, 2, 2],
        candidate_trials=[16, 16, 8, 8],
        tail=None,
        teachers=[TeacherProbs(teacher="answer", candidate_probs=[0.7, 0.1, 0.1, 0.1])],
    )

    for key, (_, one) in score([bucket]).items():
        _, other = score([tokens])[key]
        assert one.plug_in_N[0] == pytest.approx(other.plug_in_N[0], rel=1e-12)
        assert one.numerator_N[0] == pytest.approx(other.numerator_N[0], rel=1e-12)
        assert one.distill_norm_N[0] == pytest.approx(other.distill_norm_N[0], rel=1e-12)


def test_nodes_are_scored_for_the_teachers_they_have() -> None:
    """Nodes with different teachers are one set: each teacher has the nodes that name it, in their order."""
    hint = TeacherProbs(teacher="hint", candidate_probs=[0.5, 0.48], tail_prob=0.02)
    both = dataclasses.replace(NODE, position=9, teachers=[hint, *NODE.teachers])

    scored = score([both, NO_TAIL, NODE])

    assert scored["answer", "reverse_kl"][0] == [0, 1, 2]
    assert scored["hint", "reverse_kl"][0] == [0]
    assert scored["answer", "reverse_kl"][1].support_N.tolist() == [2, 3, 2]


def test_teacher_may_play_what_the_student_never_does() -> None:
    """Without a tail, what the teacher's candidates lack counts in the direction of forward KL and in its coverage."""
    node = dataclasses.replace(NO_TAIL, teachers=[TeacherProbs(teacher="answer", candidate_probs=[0.1, 0.5])])

    _, scored = score([node])["answer", "forward_kl"]

    assert scored.teacher_coverage_N[0] == pytest.approx(0.6)
    assert scored.distill_norm_N[0] == pytest.approx(np.linalg.norm([0.6, 0.2, 0.4]))
    assert np.isfinite(scored.plug_in_N[0])


def test_known_values_need_no_rollouts() -> None:
    """A known candidate has no variance, so a node of known values is certain."""
    node = dataclasses.replace(
        NO_TAIL, candidate_successes=[1, 0], candidate_trials=[0, 0], candidate_known=[True, True]
    )

    _, scored = score([node])["answer", "reverse_kl"]

    assert scored.p_heterogeneity_N[0] == 0
    assert scored.numerator_se_N[0] == 0
    assert scored.alignment_N[0] == pytest.approx(-1)
    assert scored.status_N[0] == Status.HURTS


def replaced_tail(**changes: Any) -> EvidenceNode:
    """The node with another tail."""
    assert NODE.tail
    return dataclasses.replace(NODE, tail=dataclasses.replace(NODE.tail, **changes))


def replaced_teacher(**changes: Any) -> EvidenceNode:
    """The node with another teacher."""
    return dataclasses.replace(NODE, teachers=[dataclasses.replace(NODE.teachers[0], **changes)])


REFUSED = [
    (dataclasses.replace(NODE, position=-1), "position", "at least 0, got -1"),
    (
        dataclasses.replace(NODE, candidate_student_probs=[1.0]),
        "candidate_student_probs",
        "each of the 2 candidates, got 1",
    ),
    (dataclasses.replace(NODE, candidate_known=[True]), "candidate_known", "empty or have 2 values, got 1"),
    (dataclasses.replace(NODE, candidate_token_ids=[42, 42]), "candidate_token_ids", "42 is there 2 times"),
    (dataclasses.replace(NODE, candidate_token_ids=[42, -7]), "candidate_token_ids", "at least 0, got -7"),
    (
        dataclasses.replace(NODE, candidate_student_probs=[0.7, -0.1]),
        "candidate_student_probs[1]",
        "from 0 to 1, got -0.1",
    ),
    (
        dataclasses.replace(NODE, candidate_student_probs=[float("nan"), 0.1]),
        "candidate_student_probs[0]",
        "from 0 to 1, got nan",
    ),
    (dataclasses.replace(NODE, candidate_student_probs=[0.9, 0.28]), "candidate_student_probs", "sum to 1.2"),
    (dataclasses.replace(NODE, candidate_student_probs=[0.7, 0.1]), "tail.student_prob", "0.2, got 0.02"),
    (dataclasses.replace(NODE, tail=None), "tail", "sum to 0.98"),
    (
        dataclasses.replace(NODE, candidate_successes=[17, 1]),
        "candidate_successes[0]",
        "from 0 to the 16 trials, got 17",
    ),
    (dataclasses.replace(NODE, candidate_trials=[16, -1]), "candidate_trials[1]", "at least 0, got -1"),
    (dataclasses.replace(NODE, candidate_known=[True, False]), "candidate_trials[0]", "0 where the success is known"),
    (replaced_tail(successes=9), "tail.successes", "from 0 to the 8 trials, got 9"),
    (replaced_tail(sum_sq_prob=0.1), "tail.sum_sq_prob", "squared, 0.0004, got 0.1"),
    (replaced_tail(sum_sq_prob=0.0), "tail.sum_sq_prob", "above 0"),
    (dataclasses.replace(NODE, teachers=[]), "teachers", "at least one"),
    (replaced_teacher(teacher=""), "teachers[0].teacher", "not be empty"),
    (dataclasses.replace(NODE, teachers=[*NODE.teachers] * 2), "teachers[0].teacher", "'answer' is there twice"),
    (replaced_teacher(candidate_probs=[0.8]), "teachers[0].candidate_probs", "each of the 2 candidates, got 1"),
    (replaced_teacher(candidate_probs=[0.8, 1.9]), "teachers[0].candidate_probs[1]", "from 0 to 1, got 1.9"),
    (replaced_teacher(candidate_probs=[0.8, 0.4]), "teachers[0].candidate_probs", "sum to 1.21"),
    (replaced_teacher(tail_prob=0.0), "teachers[0].tail_prob", "0.01, got 0"),
]


@pytest.mark.parametrize(("node", "field", "words"), REFUSED)
def test_wrong_node_is_refused_and_the_others_are_scored(node: EvidenceNode, field: str, words: str) -> None:
    """The refusal names the node, the field and what is accepted."""
    scored, refusals = score_evidence([NODE, node, NO_TAIL], OBJECTIVES, judgement=JUDGEMENT)

    assert {index for index, _ in refusals} == {1}
    assert refusals[0][1].field == field
    assert words in refusals[0][1].description
    assert scored[0].index_N.tolist() == [0, 2]


def test_nothing_good_gives_nothing() -> None:
    """No nodes, or only refused ones, give no alignments."""
    bad = dataclasses.replace(NODE, position=-1)

    assert score_evidence([], OBJECTIVES, judgement=JUDGEMENT) == ([], [])
    assert score_evidence([bad], OBJECTIVES, judgement=JUDGEMENT)[0] == []
