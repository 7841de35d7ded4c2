"""Events of a run, as messages with the key that says what they are about."""

from collections.abc import Sequence

from opdscope.v1 import alignment_pb2, scorer_pb2
from opdscope_serving.text import decode, token_texts
from transformers import PreTrainedTokenizerBase

from opdscope_scorer.analysis import Rollout, ScoredRollout
from opdscope_scorer.convert import alignments_message
from opdscope_scorer.nodes import TAIL, Nodes
from opdscope_scorer.scoring import Alignments
from opdscope_scorer.tables import Event


def rollout_event(rollout: Rollout, text: str, finish_reason: int, tokenizer: PreTrainedTokenizerBase) -> Event:
    """A student rollout is finished and verified."""
    message = scorer_pb2.RolloutFinished(
        question_id=rollout.question.id,
        rollout_id=rollout.id,
        token_ids=rollout.output,
        token_texts=token_texts(tokenizer, rollout.output),
        text=text,
        success=rollout.success,
        finish_reason=finish_reason,  # type: ignore[arg-type] # an enum's number
    )
    return _event(f"rollout {rollout.id}", scorer_pb2.WatchRunResponse(rollout=message))


def scored_event(
    scored: ScoredRollout, alignments: Sequence[Alignments], rows: slice, tokenizer: PreTrainedTokenizerBase
) -> Event:
    """The nodes of a rollout are scored; they are some rows of the alignments."""
    rollout, planned = scored.planned.rollout, scored.planned.nodes
    tokens = [token for node in planned for token in node.candidates]
    message = scorer_pb2.RolloutScored(
        question_id=rollout.question.id,
        rollout_id=rollout.id,
        nodes=[_node(scored, n) for n in range(len(planned))],
        entropy_nats=[float(scored.planned.trace.entropy_L[node.position]) for node in planned],
        divergence_nats=[value for row in scored.divergence_nats for value in row],
        alignments=[alignments_message(columns, rows) for columns in alignments],
        candidate_texts=[decode(tokenizer, [token]) for token in tokens],
    )
    return _event(f"scored {rollout.id}", scorer_pb2.WatchRunResponse(scored=message))


def question_event(question_id: str, rollouts: Sequence[Rollout], spent: scorer_pb2.Spent) -> Event:
    """All rollouts of a question are scored."""
    message = scorer_pb2.QuestionFinished(
        question_id=question_id,
        rollouts=len(rollouts),
        successes=sum(rollout.success for rollout in rollouts),
        spent=spent,
    )
    return _event(f"question {question_id}", scorer_pb2.WatchRunResponse(question=message))


def finished_event(message: scorer_pb2.RunFinished) -> Event:
    """The run is over."""
    return _event("finished", scorer_pb2.WatchRunResponse(finished=message))


def _event(key: str, message: scorer_pb2.WatchRunResponse) -> Event:
    return Event(key, message.SerializeToString())


def _node(scored: ScoredRollout, n: int) -> alignment_pb2.EvidenceNode:
    nodes, rollout, planned = scored.nodes, scored.planned.rollout, scored.planned.nodes[n]
    count = len(planned.candidates)
    node = alignment_pb2.EvidenceNode(
        question_id=rollout.question.id,
        rollout_id=rollout.id,
        position=planned.position,
        taken_token_id=rollout.output[planned.position],
        rollout_success=rollout.success,
        candidate_token_ids=planned.candidates,
        candidate_student_probs=nodes.mass_NK[n, :count].tolist(),
        candidate_successes=nodes.successes_NK[n, :count].tolist(),
        candidate_trials=nodes.trials_NK[n, :count].tolist(),
        candidate_known=planned.known if any(planned.known) else (),
    )
    if (tail := _tail(nodes, n)) is not None:
        node.tail.CopyFrom(tail)
    # All objectives of a teacher share its probabilities.
    masses = {direction.teacher: direction.teacher_mass_NK for direction in scored.directions}
    for teacher, mass_NK in masses.items():
        tail_prob = float(mass_NK[n, count]) if tail is not None else 0.0
        node.teachers.add(teacher=teacher, candidate_probs=mass_NK[n, :count].tolist(), tail_prob=tail_prob)
    return node


def _tail(nodes: Nodes, n: int) -> alignment_pb2.EvidenceTail | None:
    (columns,) = (nodes.token_NK[n] == TAIL).nonzero()
    if not len(columns):
        return None
    k = columns[0]
    return alignment_pb2.EvidenceTail(
        student_prob=nodes.mass_NK[n, k],
        successes=nodes.successes_NK[n, k],
        trials=nodes.trials_NK[n, k],
        sum_sq_prob=nodes.sum_sq_NK[n, k],
    )
