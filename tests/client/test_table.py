"""The summary table and the most telling tokens, as people read them."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from opdscope import (
    Alignment,
    Candidate,
    Correctness,
    EvidenceNode,
    FinishReason,
    IntervalScope,
    PooledAlignment,
    RolloutFinished,
    RolloutScored,
    RunFinished,
    RunState,
    Spent,
    Status,
    Support,
    Tail,
)
from opdscope._findings import Findings
from opdscope._table import summary
from rich.text import Text


def _pooled(**changes: object) -> PooledAlignment:
    values: dict[str, Any] = {
        "teacher": "answer", "objective": "reverse_kl", "correctness": Correctness.CORRECT, "pooled": -0.123,
        "pooled_low": -0.456, "pooled_high": 0.21, "pooled_plug_in": -0.1, "scope": IntervalScope.THESE_NODES,
        "mean_plug_in": -0.05, "mean_low": -0.1, "mean_high": 0.0, "nodes": 12345, "dropped_nodes": 1, "helps": 0,
        "hurts": 12345, "neutral": 0, "undetermined": 0, "mean_teacher_advantage": None,
    }  # fmt: skip
    return PooledAlignment(**(values | changes))


def _finished(*pooled: PooledAlignment, mismatch: float | None = 1e-6) -> RunFinished:
    return RunFinished(
        sequence=9,
        state=RunState.DONE,
        error="",
        pooled=pooled,
        spent=Spent(rollouts=1234567, generated_tokens=98765432),
        policy_mismatch_mean_nats=mismatch,
        policy_mismatch_max_nats=mismatch,
    )


def _alignment(position: int, **changes: object) -> Alignment:
    values: dict[str, Any] = {
        "node_index": 0, "question_id": "q1", "rollout_id": "q1/0", "position": position, "teacher": "answer",
        "objective": "reverse_kl", "plug_in": None, "alignment": None, "low": None, "high": None,
        "status": Status.UNDETERMINED, "teacher_advantage": None, "numerator": None, "numerator_se": None,
        "ideal_norm_sq": None, "distill_norm": None, "p_heterogeneity": None, "coverage": None,
        "teacher_coverage": None, "candidate_cosine": None, "support": Support.FULL_VOCABULARY,
    }  # fmt: skip
    return Alignment(**(values | changes))


def _helps(position: int, low: float, **changes: object) -> Alignment:
    values = {"alignment": low + 0.1, "low": low, "high": low + 0.2, "status": Status.HELPS}
    return _alignment(position, **{**values, **changes})


def _hint(position: int, numerator: float, **changes: object) -> Alignment:
    return _alignment(position, numerator=numerator, numerator_se=0.1, **changes)


def _findings(rows: Iterable[Alignment], texts: tuple[str, ...] = ("a", " b", " c", " d", "\n")) -> Findings:
    findings = Findings()
    for (question_id, rollout_id, position), alignments in itertools.groupby(sorted(rows, key=_key), key=_key):
        findings.add(_rollout(question_id, rollout_id, texts))
        findings.add(_scored(question_id, rollout_id, position, tuple(alignments)))
    return findings


def _key(row: Alignment) -> tuple[str, str, int]:
    return row.question_id, row.rollout_id, row.position


def _rollout(question_id: str, rollout_id: str, texts: tuple[str, ...]) -> RolloutFinished:
    return RolloutFinished(
        sequence=1,
        question_id=question_id,
        rollout_id=rollout_id,
        token_ids=tuple(range(len(texts))),
        token_texts=texts,
        text="".join(texts),
        success=False,
        finish_reason=FinishReason.LENGTH,
    )


def _scored(question_id: str, rollout_id: str, position: int, alignments: tuple[Alignment, ...]) -> RolloutScored:
    candidates = (
        Candidate(token_id=1, student_prob=0.6, successes=3, trials=8, teacher_probs={"answer": 0.1}, text=" b"),
        Candidate(token_id=2, student_prob=0.3, successes=1, trials=0, teacher_probs={}, known=True, text="\n" * 99),
        Candidate(token_id=3, student_prob=0.1, successes=0, trials=0, teacher_probs={"answer": 0.9}),
    )
    node = EvidenceNode(
        question_id=question_id,
        rollout_id=rollout_id,
        position=position,
        candidates=candidates,
        tail=Tail(student_prob=1e-9, successes=0, trials=8, teacher_probs={"answer": 0.0}),
        taken_token_id=1,
    )
    return RolloutScored(
        sequence=2,
        question_id=question_id,
        rollout_id=rollout_id,
        nodes=(node,),
        entropy_nats=(0.5,),
        divergence_nats=((0.1,),),
        alignments=alignments,
    )


def _text(lines: Iterable[Text]) -> str:
    return "\n".join(line.plain for line in lines)


EMPTY = dict.fromkeys(
    ["pooled", "pooled_low", "pooled_high", "pooled_plug_in", "mean_plug_in", "mean_low", "mean_high"]
)
LONG = "a_very_long_objective(with=many,parameters=that,do=not,fit=into,any=line,of=a,table=1)"
TABLES: list[tuple[RunFinished, Findings]] = [
    (_finished(), Findings()),
    (_finished(_pooled(), _pooled(correctness=Correctness.INCORRECT)), _findings([_helps(1, 0.3)])),
    (_finished(_pooled(**EMPTY), mismatch=None), _findings([_alignment(1)])),
    (_finished(_pooled(**{**EMPTY, "nodes": 0})), _findings([_hint(1, 0.2)])),
    (_finished(_pooled(objective=LONG, teacher="t" * 99)), _findings([_helps(4, 0.3, objective=LONG)])),
    (_finished(_pooled(pooled_low=None, mean_low=None)), _findings([_helps(2, 0.3)], ("x" * 200, "\n\t", "y" * 200))),
    (_finished(_pooled()), _findings([_helps(0, 0.3)], ("x" * 200, "z"))),
    (_finished(_pooled()), _findings([_helps(99, 0.3)], ("a",))),
    (_finished(_pooled()), _findings([_helps(1, 0.3, question_id="q" * 90, rollout_id="q" * 90 + "/0")])),
]


@pytest.mark.parametrize(("finished", "findings"), TABLES)
def test_a_summary_fits_80_columns_and_never_says_nan(finished: RunFinished, findings: Findings) -> None:
    """Whatever is missing, long or strange."""
    text = _text(summary(findings, finished))
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "nan" not in text.lower().replace("undetermined", "")
    assert "None" not in text.replace("None is determined", "")


def test_a_line_holds_all_figures() -> None:
    """Pooled value with its interval, mean with half its interval, shares and number of nodes."""
    text = _text(summary(Findings(), _finished(_pooled(nodes=200, helps=20, hurts=50, neutral=30, undetermined=100))))
    (line,) = [line for line in text.splitlines() if line.startswith("  correct ")]
    assert line.split() == [
        "correct", "-0.12", "[-0.46,", "+0.21]", "-0.050", "±0.050", "10%", "25%", "15%", "50%", "200",
    ]  # fmt: skip
    assert "reverse_kl under answer" in text
    assert "incorrect – no such nodes" in text
    assert "1,234,567 rollouts, 98,765,432 generated tokens" in text


def test_what_is_not_determined_is_said_so() -> None:
    """No number stands where the outcomes give none."""
    text = _text(summary(Findings(), _finished(_pooled(**EMPTY, undetermined=12345, hurts=0), mismatch=None)))
    assert "correct   undetermined" in text
    assert "100%" in text
    assert "not measured" in text


def test_the_strongest_determined_tokens_come_first_and_from_different_questions() -> None:
    """The distance of the interval from 0 decides; each position stands once."""
    rows = [
        _helps(1, 0.5),
        _helps(1, 0.4, objective="forward_kl"),
        _helps(2, 0.45),
        _helps(1, 0.2, question_id="q2", rollout_id="q2/0"),
        _alignment(3, status=Status.HURTS, alignment=-0.9, low=-1.0, high=-0.8, question_id="q3", rollout_id="q3/0"),
        _hint(3, 9.0),
    ]
    found = [(token.alignment.question_id, token.alignment.position) for token in _findings(rows).telling_tokens()]
    assert found == [("q3", 3), ("q1", 1), ("q2", 1)]


def test_undetermined_tokens_fill_up_and_are_marked() -> None:
    """Fewer than three determined tokens are followed by the strongest hints."""
    findings = _findings([_helps(1, 0.2), _hint(2, -0.3), _hint(3, 0.1)])
    assert [token.alignment.position for token in findings.telling_tokens()] == [1, 2, 3]
    text = _text(summary(findings, _finished()))
    assert "numerator -3.0 standard errors from 0" in text
    assert "None is determined" not in text


def test_it_is_said_when_no_token_is_determined() -> None:
    """The hints are shown as hints."""
    text = _text(summary(_findings([_hint(2, -0.3)]), _finished()))
    assert "None is determined" in text
    assert "reverse_kl under answer undetermined" in text


def test_a_token_stands_in_its_text_with_its_candidates() -> None:
    """Marked in the snippet; P, q and counts beside each candidate; a known outcome is said in words."""
    text = _text(summary(_findings([_helps(1, 0.3)]), _finished()))
    assert "  a[ b] c d\\n" in text
    assert '> " b"                       0.600   0.100         3/8' in text
    assert "ends, right" in text
    assert "(all others)" in text


def test_memory_is_bounded_by_the_strongest_tokens() -> None:
    """Thousands of rollouts leave the strongest and nothing else behind."""
    rows = [
        _helps(1, number / 4000, question_id=f"q{number:04}", rollout_id=f"q{number:04}/0") for number in range(2000)
    ]
    findings = _findings(rows)
    assert [token.alignment.question_id for token in findings.telling_tokens()] == ["q1999", "q1998", "q1997"]
    assert len(findings._determined) == 64  # noqa: SLF001 - the bound is what is tested
