"""The only file that knows both the messages of `opdscope.v1` and the types of the SDK.

On the wire NaN says that a value does not exist; here it is `None`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.json_format import MessageToDict

from opdscope import _types as sdk
from opdscope._errors import ServerError
from opdscope._questions import Question
from opdscope._runfile import Nodes, RunFile
from opdscope.v1 import alignment_pb2, generator_pb2, scorer_pb2

_E = TypeVar("_E", bound=StrEnum)


def run_settings(run: RunFile) -> scorer_pb2.RunSettings:
    """Everything of a run file that the scorer must know, but the questions."""
    return scorer_pb2.RunSettings(
        prompt_template=run.prompt.template,
        teachers=[scorer_pb2.Teacher(name=teacher.name, context=teacher.context) for teacher in run.teachers],
        objectives=run.objectives,
        verifier=run.verifier,
        sampling=generator_pb2.Sampling(
            temperature=run.sampling.temperature,
            top_p=run.sampling.top_p,
            stop_strings=run.sampling.stop,
            stop_token_ids=run.sampling.stop_token_ids,
        ),
        max_new_tokens=run.sampling.max_new_tokens,
        rollouts_per_question=run.rollouts_per_question,
        nodes=_node_selection(run.nodes),
        candidates=scorer_pb2.CandidateSelection(
            student_top_k=run.candidates.student_top_k,
            teacher_top_k=run.candidates.teacher_top_k,
            min_student_prob=run.candidates.min_student_prob,
        ),
        rollouts_per_candidate=run.budget.rollouts_per_candidate,
        seed=run.seed,
        judgement=alignment_pb2.Judgement(confidence=run.confidence, delta=run.delta),
        loss_temperature=run.loss_temperature,
    )


def _node_selection(nodes: Nodes) -> scorer_pb2.NodeSelection:
    return scorer_pb2.NodeSelection(
        selector=nodes.selector,
        max_nodes=nodes.max_nodes,
        min_entropy_nats=nodes.min_entropy_nats,
        positions=nodes.positions,
    )


def question_message(question: Question) -> scorer_pb2.Question:
    """A question for the wire."""
    return scorer_pb2.Question(
        id=question.id,
        question=question.question,
        answer=question.answer,
        solution=question.solution,
        hint=question.hint,
    )


def evidence_settings(
    objectives: Iterable[str], confidence: float | None, delta: float | None
) -> scorer_pb2.EvidenceSettings:
    """What to compute from evidence; `None` leaves the default to the scorer."""
    judgement = alignment_pb2.Judgement(confidence=confidence, delta=delta)
    return scorer_pb2.EvidenceSettings(objectives=objectives, judgement=judgement)


def evidence_message(node: sdk.EvidenceNode) -> alignment_pb2.EvidenceNode:
    """A node for the wire. Candidates and tail must all name the same teachers."""
    candidates = node.candidates
    teachers = candidates[0].teacher_probs if candidates else {}
    return alignment_pb2.EvidenceNode(
        question_id=node.question_id,
        rollout_id=node.rollout_id,
        position=node.position,
        taken_token_id=node.taken_token_id,
        rollout_success=node.rollout_success,
        candidate_token_ids=[candidate.token_id for candidate in candidates],
        candidate_student_probs=[candidate.student_prob for candidate in candidates],
        candidate_successes=[candidate.successes for candidate in candidates],
        candidate_trials=[candidate.trials for candidate in candidates],
        candidate_known=_known(candidates),
        tail=_tail_message(node.tail) if node.tail else None,
        teachers=[_teacher_message(teacher, node) for teacher in teachers],
    )


def _known(candidates: Sequence[sdk.Candidate]) -> list[bool]:
    known = [candidate.known for candidate in candidates]
    return known if any(known) else []


def _tail_message(tail: sdk.Tail) -> alignment_pb2.EvidenceTail:
    return alignment_pb2.EvidenceTail(
        student_prob=tail.student_prob, successes=tail.successes, trials=tail.trials, sum_sq_prob=tail.sum_sq_prob
    )


def _teacher_message(teacher: str, node: sdk.EvidenceNode) -> alignment_pb2.TeacherProbs:
    return alignment_pb2.TeacherProbs(
        teacher=teacher,
        candidate_probs=[candidate.teacher_probs[teacher] for candidate in node.candidates],
        tail_prob=node.tail.teacher_probs[teacher] if node.tail else 0.0,
    )


def student(message: scorer_pb2.GetStudentResponse) -> sdk.Student:
    """The student as the scorer describes it."""
    return sdk.Student(
        model_id=message.model_id,
        weights_version=message.weights_version,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        vocabulary_size=message.vocabulary_size,
        context_length=message.context_length,
        dtype=message.dtype,
    )


def run(message: scorer_pb2.Run) -> sdk.Run:
    """The state of a run."""
    return sdk.Run(
        run_id=message.run_id,
        state=_enum(sdk.RunState, scorer_pb2.RunState, message.state),
        settings=MessageToDict(message.settings, preserving_proto_field_name=True),
        questions=message.questions,
        questions_done=message.questions_done,
        last_sequence=message.last_sequence,
        created_unix_seconds=message.created_unix_seconds,
        spent=_spent(message.spent),
        error=message.error,
    )


def run_event(message: scorer_pb2.WatchRunResponse) -> sdk.RunEvent | None:
    """An event; `None` for a kind that this version does not know."""
    match message.WhichOneof("event"):
        case "rollout":
            return _rollout_finished(message.sequence, message.rollout)
        case "scored":
            return _rollout_scored(message.sequence, message.scored)
        case "question":
            return _question_finished(message.sequence, message.question)
        case "finished":
            return _run_finished(message.sequence, message.finished)
        case "progress":
            return _progress(message.progress)
    return None


def _rollout_finished(sequence: int, message: scorer_pb2.RolloutFinished) -> sdk.RolloutFinished:
    return sdk.RolloutFinished(
        sequence=sequence,
        question_id=message.question_id,
        rollout_id=message.rollout_id,
        token_ids=tuple(message.token_ids),
        token_texts=tuple(message.token_texts),
        text=message.text,
        success=message.success,
        finish_reason=_enum(sdk.FinishReason, generator_pb2.FinishReason, message.finish_reason),
    )


def _rollout_scored(sequence: int, message: scorer_pb2.RolloutScored) -> sdk.RolloutScored:
    texts = iter(message.candidate_texts)
    nodes = tuple(_evidence_node(node, texts) for node in message.nodes)
    divergences = [_number(value) for value in message.divergence_nats]
    return sdk.RolloutScored(
        sequence=sequence,
        question_id=message.question_id,
        rollout_id=message.rollout_id,
        nodes=nodes,
        entropy_nats=tuple(map(_number, message.entropy_nats)),
        divergence_nats=tuple(
            tuple(divergences[start : start + len(nodes)]) for start in range(0, len(divergences), max(1, len(nodes)))
        ),
        alignments=tuple(
            row for packed in message.alignments for row in alignments(packed, dict(enumerate(map(node_key, nodes))))
        ),
    )


def _evidence_node(message: alignment_pb2.EvidenceNode, texts: Iterator[str]) -> sdk.EvidenceNode:
    return sdk.EvidenceNode(
        question_id=message.question_id,
        rollout_id=message.rollout_id,
        position=message.position,
        taken_token_id=message.taken_token_id if message.HasField("taken_token_id") else None,
        rollout_success=message.rollout_success if message.HasField("rollout_success") else None,
        candidates=tuple(_candidates(message, texts)),
        tail=_tail(message) if message.HasField("tail") else None,
    )


def _candidates(message: alignment_pb2.EvidenceNode, texts: Iterator[str]) -> Iterator[sdk.Candidate]:
    known = message.candidate_known or [False] * len(message.candidate_token_ids)
    for index, token_id in enumerate(message.candidate_token_ids):
        yield sdk.Candidate(
            token_id=token_id,
            student_prob=message.candidate_student_probs[index],
            successes=message.candidate_successes[index],
            trials=message.candidate_trials[index],
            teacher_probs={teacher.teacher: teacher.candidate_probs[index] for teacher in message.teachers},
            known=known[index],
            text=next(texts, None),
        )


def _tail(message: alignment_pb2.EvidenceNode) -> sdk.Tail:
    tail = message.tail
    return sdk.Tail(
        student_prob=tail.student_prob,
        successes=tail.successes,
        trials=tail.trials,
        teacher_probs={teacher.teacher: teacher.tail_prob for teacher in message.teachers},
        sum_sq_prob=tail.sum_sq_prob if tail.HasField("sum_sq_prob") else None,
    )


NodeKey = tuple[str, str, int]
"""Question, rollout and position."""


def node_key(node: sdk.EvidenceNode) -> NodeKey:
    """What an alignment repeats of its node."""
    return node.question_id, node.rollout_id, node.position


_ARRAYS = (
    "plug_in", "alignment", "low", "high", "teacher_advantage", "numerator", "numerator_se", "ideal_norm_sq",
    "distill_norm", "p_heterogeneity", "coverage", "teacher_coverage", "candidate_cosine",
)  # fmt: skip


def alignments(message: alignment_pb2.Alignments, keys: Mapping[int, NodeKey]) -> Iterator[sdk.Alignment]:
    """The packed arrays row by row."""
    columns = [_column(getattr(message, name), len(message.node_indices)) for name in _ARRAYS]
    for row, (index, status, support) in enumerate(
        zip(message.node_indices, message.status, message.support, strict=True)
    ):
        if index not in keys:
            raise ServerError(f"the scorer sent an alignment of node {index}, which it was not sent")
        question_id, rollout_id, position = keys[index]
        yield sdk.Alignment(
            node_index=index,
            question_id=question_id,
            rollout_id=rollout_id,
            position=position,
            teacher=message.teacher,
            objective=message.objective,
            status=_enum(sdk.Status, alignment_pb2.AlignmentStatus, status),
            support=_enum(sdk.Support, alignment_pb2.Support, support),
            **{name: column[row] for name, column in zip(_ARRAYS, columns, strict=True)},
        )


def _column(values: Sequence[float], length: int) -> list[float | None]:
    if len(values) not in {0, length}:
        raise ServerError(f"the scorer sent {len(values)} values for {length} nodes")
    return [_number(value) for value in values] or [None] * length


def refusal(message: scorer_pb2.EvidenceRefusal) -> sdk.EvidenceRefusal:
    """A node that could not be scored."""
    return sdk.EvidenceRefusal(node_index=message.node_index, field=message.field, description=message.description)


def _question_finished(sequence: int, message: scorer_pb2.QuestionFinished) -> sdk.QuestionFinished:
    return sdk.QuestionFinished(
        sequence=sequence,
        question_id=message.question_id,
        rollouts=message.rollouts,
        successes=message.successes,
        spent=_spent(message.spent),
    )


def _run_finished(sequence: int, message: scorer_pb2.RunFinished) -> sdk.RunFinished:
    return sdk.RunFinished(
        sequence=sequence,
        state=_enum(sdk.RunState, scorer_pb2.RunState, message.state),
        error=message.error,
        pooled=tuple(_pooled(pooled) for pooled in message.pooled),
        spent=_spent(message.spent),
        policy_mismatch_mean_nats=_optional(message, "policy_mismatch_mean_nats"),
        policy_mismatch_max_nats=_optional(message, "policy_mismatch_max_nats"),
    )


def _pooled(message: scorer_pb2.PooledAlignment) -> sdk.PooledAlignment:
    return sdk.PooledAlignment(
        teacher=message.teacher,
        objective=message.objective,
        correctness=_enum(sdk.Correctness, scorer_pb2.Correctness, message.correctness),
        pooled=_optional(message, "pooled"),
        pooled_low=_optional(message, "pooled_low"),
        pooled_high=_optional(message, "pooled_high"),
        pooled_plug_in=_optional(message, "pooled_plug_in"),
        scope=_enum(sdk.IntervalScope, scorer_pb2.IntervalScope, message.scope),
        mean_plug_in=_optional(message, "mean_plug_in"),
        mean_low=_optional(message, "mean_low"),
        mean_high=_optional(message, "mean_high"),
        nodes=message.nodes,
        dropped_nodes=message.dropped_nodes,
        helps=message.helps,
        hurts=message.hurts,
        neutral=message.neutral,
        undetermined=message.undetermined,
        mean_teacher_advantage=_optional(message, "mean_teacher_advantage"),
    )


def _progress(message: scorer_pb2.Progress) -> sdk.Progress:
    return sdk.Progress(
        questions=message.questions,
        questions_done=message.questions_done,
        rollouts_planned=message.rollouts_planned,
        rollouts_done=message.rollouts_done,
        generated_tokens=message.generated_tokens,
        activity=message.activity,
    )


def _spent(message: scorer_pb2.Spent) -> sdk.Spent:
    return sdk.Spent(rollouts=message.rollouts, generated_tokens=message.generated_tokens)


def _optional(message: scorer_pb2.PooledAlignment | scorer_pb2.RunFinished, field: str) -> float | None:
    return _number(getattr(message, field)) if message.HasField(field) else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _enum(kind: type[_E], wire: EnumTypeWrapper, value: int) -> _E:
    """`RUN_STATE_DONE` as `RunState.DONE`."""
    prefix = wire.Name(0).removesuffix("UNSPECIFIED")
    try:
        return kind(wire.Name(value).removeprefix(prefix).lower())
    except ValueError:
        raise ServerError(f"the scorer sent {value} as {wire.DESCRIPTOR.name}; is it of a newer version?") from None


def capabilities(message: scorer_pb2.ListCapabilitiesResponse) -> sdk.Capabilities:
    """What a run may name."""
    return sdk.Capabilities(
        objectives=tuple(_objective_info(objective) for objective in message.objectives),
        contexts=_named(message.contexts),
        verifiers=_named(message.verifiers),
        node_selectors=_named(message.node_selectors),
    )


def _named(messages: Iterable[scorer_pb2.NamedInfo]) -> tuple[sdk.NamedInfo, ...]:
    return tuple(sdk.NamedInfo(name=m.name, description=m.description, needs=tuple(m.needs)) for m in messages)


def _objective_info(message: scorer_pb2.ObjectiveInfo) -> sdk.ObjectiveInfo:
    return sdk.ObjectiveInfo(
        name=message.name,
        family=message.family,
        formula=message.formula,
        loss=message.loss,
        source=message.source,
        needs=tuple(message.needs),
        parameters=tuple(
            sdk.ObjectiveParameter(name=p.name, default=p.default_value, meaning=p.meaning, accepted=p.accepted)
            for p in message.parameters
        ),
        note=message.note,
    )
