"""Between protobuf and the scorer's own types: the only file that knows both."""

import math
import re
from collections.abc import Sequence
from typing import Any

from opdscope.v1 import alignment_pb2, generator_pb2, scorer_pb2

from opdscope_scorer.contexts import CONTEXTS
from opdscope_scorer.evidence import EvidenceNode, EvidenceTail, TeacherProbs
from opdscope_scorer.objectives import Need, parse_objective
from opdscope_scorer.prompts import PromptTemplate
from opdscope_scorer.questions import Question
from opdscope_scorer.run_settings import RunSettings, Sampling, Teacher
from opdscope_scorer.scoring import Alignments, Judgement
from opdscope_scorer.selection import SELECTORS, CandidateSelection, NodeSelection
from opdscope_scorer.tables import StoredRun
from opdscope_scorer.verifiers import VERIFIERS
from opdscope_scorer.violations import Violations

# What the nodes of a run have for objectives: full distributions and logits of student and teachers.
_OFFERED = frozenset({Need.FULL_VOCABULARY, Need.FULL_LOGITS})
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Finite limits: what one run may ask for.
MAX_NEW_TOKENS = 1_000_000
MAX_ROLLOUTS = 10_000
MAX_TOP_K = 1_000


def check_run_id(run_id: str) -> str:
    """Return a run id that is well-formed.

    Raises:
        InvalidRequest: It is not.
    """
    wrong = Violations()
    accepted = "1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
    wrong.require("run_id", run_id, accepted, ok=bool(_RUN_ID.fullmatch(run_id)))
    wrong.raise_any()
    return run_id


def run_settings(message: scorer_pb2.RunSettings) -> RunSettings:
    """Return the settings of a run.

    Raises:
        InvalidRequest: Some are wrong; it names all of them.
    """
    wrong = Violations()
    template = wrong.attempt("settings.prompt_template", lambda: PromptTemplate(message.prompt_template))
    verifier = wrong.attempt("settings.verifier", lambda: VERIFIERS.get(message.verifier))
    teachers = _teachers(message, template, wrong)
    objectives = [_objective(text, n, wrong) for n, text in enumerate(message.objectives)]
    wrong.require("settings.objectives", [], "at least one objective", ok=bool(objectives))
    _check_numbers(message, wrong)
    judgement_of_run = judgement(message.judgement, "settings.judgement", wrong)
    nodes = _node_selection(message.nodes, wrong)
    wrong.raise_any()
    assert template
    assert verifier
    bound = {objective.canonical: objective for objective in objectives if objective}
    sampling = message.sampling
    return RunSettings(
        template=template,
        teachers=tuple(teachers),
        objectives=tuple(bound.values()),
        verifier=verifier,
        sampling=Sampling(
            sampling.temperature, sampling.top_p, tuple(sampling.stop_strings), tuple(sampling.stop_token_ids)
        ),
        max_new_tokens=message.max_new_tokens,
        rollouts_per_question=message.rollouts_per_question,
        nodes=nodes,
        candidates=CandidateSelection(
            message.candidates.student_top_k, message.candidates.teacher_top_k, message.candidates.min_student_prob
        ),
        rollouts_per_candidate=message.rollouts_per_candidate,
        seed=message.seed,
        judgement=judgement_of_run,
        loss_temperature=message.loss_temperature if message.HasField("loss_temperature") else sampling.temperature,
    )


def judgement(message: alignment_pb2.Judgement, field: str, wrong: Violations) -> Judgement:
    """Return how alignments are judged, with defaults for what is absent."""
    default = Judgement()
    confidence = message.confidence if message.HasField("confidence") else default.confidence
    delta = message.delta if message.HasField("delta") else default.delta
    wrong.require(f"{field}.confidence", confidence, "above 0 and below 1", ok=0 < confidence < 1)
    wrong.require(f"{field}.delta", delta, "at least 0 and below 1", ok=0 <= delta < 1)
    return Judgement(confidence=confidence, delta=delta)


def questions(messages: Sequence[scorer_pb2.Question], settings: RunSettings) -> list[Question]:
    """Return questions that a run with these settings can work on.

    Raises:
        InvalidRequest: Some are wrong; it names all of them.
    """
    wrong = Violations()
    seen: set[str] = set()
    for n, message in enumerate(messages):
        field = f"questions[{n}]"
        wrong.require(f"{field}.id", message.id, "not empty", ok=bool(message.id))
        wrong.require(f"{field}.id", message.id, "different from all others", ok=message.id not in seen)
        seen.add(message.id)
        for name in ("question", "answer"):
            text = getattr(message, name)
            wrong.require(f"{field}.{name}", text, f"not empty (question {message.id!r})", ok=bool(text.strip()))
        if message.answer.strip() and not settings.verifier.check(message.answer, message.answer):
            wrong.add(
                f"{field}.answer",
                f"the verifier {settings.verifier.name!r} does not even accept the reference answer "
                f"{message.answer!r} (question {message.id!r})",
            )
        for teacher in settings.teachers:
            for name in teacher.context.missing(question(message)):
                described = f"is empty, and the context {teacher.context.name!r} shows it (question {message.id!r})"
                if name != "answer":
                    wrong.add(f"{field}.{name}", described)
    wrong.raise_any()
    return [question(message) for message in messages]


def question(message: scorer_pb2.Question) -> Question:
    """Return a question."""
    return Question(
        id=message.id,
        question=message.question,
        answer=message.answer,
        solution=message.solution if message.HasField("solution") else None,
        hint=message.hint if message.HasField("hint") else None,
    )


def sampling_message(sampling: Sampling) -> generator_pb2.Sampling:
    """Return how a generator must sample."""
    return generator_pb2.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop_strings=sampling.stop_strings,
        stop_token_ids=sampling.stop_token_ids,
    )


def evidence_node(message: alignment_pb2.EvidenceNode) -> EvidenceNode:
    """Return a node of evidence; what is wrong with it is found when it is scored."""
    tail = message.tail if message.HasField("tail") else None
    return EvidenceNode(
        question_id=message.question_id,
        rollout_id=message.rollout_id,
        position=message.position,
        candidate_token_ids=message.candidate_token_ids,
        candidate_student_probs=message.candidate_student_probs,
        candidate_successes=message.candidate_successes,
        candidate_trials=message.candidate_trials,
        candidate_known=message.candidate_known,
        tail=None
        if tail is None
        else EvidenceTail(
            student_prob=tail.student_prob,
            successes=tail.successes,
            trials=tail.trials,
            sum_sq_prob=tail.sum_sq_prob if tail.HasField("sum_sq_prob") else None,
        ),
        teachers=[
            TeacherProbs(teacher=t.teacher, candidate_probs=t.candidate_probs, tail_prob=t.tail_prob)
            for t in message.teachers
        ],
    )


def run_message(run: StoredRun) -> scorer_pb2.Run:
    """Return a run."""
    return scorer_pb2.Run(
        run_id=run.run_id,
        state=scorer_pb2.RunState.Name(run.state),
        settings=scorer_pb2.RunSettings.FromString(run.settings),
        questions=run.questions,
        questions_done=run.questions_done,
        last_sequence=run.last_sequence,
        created_unix_seconds=run.created,
        spent=scorer_pb2.Spent(rollouts=run.rollouts, generated_tokens=run.generated_tokens),
        error=run.error,
    )


_COLUMNS = (
    "plug_in",
    "alignment",
    "low",
    "high",
    "status",
    "teacher_advantage",
    "numerator",
    "numerator_se",
    "ideal_norm_sq",
    "distill_norm",
    "p_heterogeneity",
    "coverage",
    "teacher_coverage",
    "candidate_cosine",
    "support",
)


def alignments_message(
    alignments: Alignments, rows: slice, node_indices: Sequence[int] | None = None
) -> alignment_pb2.Alignments:
    """Return some rows of alignments, with their indices from 0 or as given."""
    columns: dict[str, Any] = {name: getattr(alignments, f"{name}_N")[rows].tolist() for name in _COLUMNS}
    count = len(columns["plug_in"])
    return alignment_pb2.Alignments(
        teacher=alignments.teacher,
        objective=alignments.objective,
        node_indices=range(count) if node_indices is None else node_indices,
        **columns,
    )


def _objective(text: str, number: int, wrong: Violations) -> Any:  # noqa: ANN401
    def make() -> Any:  # noqa: ANN401
        objective = parse_objective(text)
        objective.require(_OFFERED)
        return objective

    return wrong.attempt(f"settings.objectives[{number}]", make)


def _teachers(message: scorer_pb2.RunSettings, template: PromptTemplate | None, wrong: Violations) -> list[Teacher]:
    wrong.require("settings.teachers", [], "at least one teacher", ok=bool(message.teachers))
    teachers: list[Teacher] = []
    for n, entry in enumerate(message.teachers):
        field = f"settings.teachers[{n}]"
        name = entry.name or entry.context
        wrong.require(f"{field}.name", name, "different from all others", ok=name not in {t.name for t in teachers})
        context = wrong.attempt(f"{field}.context", lambda entry=entry: CONTEXTS.get(entry.context))  # type: ignore[misc]
        if context is None:
            continue
        if context.needs and template and not template.shows_privileged:
            wrong.add(
                "settings.prompt_template", f"does not contain {{{{ privileged }}}}, which teacher {name!r} needs"
            )
        teachers.append(Teacher(name, context))
    return teachers


def _check_numbers(message: scorer_pb2.RunSettings, wrong: Violations) -> None:
    sampling = message.sampling
    finite = math.isfinite(sampling.temperature) and sampling.temperature > 0
    wrong.require("settings.sampling.temperature", sampling.temperature, "above 0", ok=finite)
    wrong.require("settings.sampling.top_p", sampling.top_p, "above 0 and at most 1", ok=0 < sampling.top_p <= 1)
    wrong.require(
        "settings.sampling.stop_strings", list(sampling.stop_strings), "not empty each", ok=all(sampling.stop_strings)
    )
    if message.HasField("loss_temperature"):
        value = message.loss_temperature
        wrong.require("settings.loss_temperature", value, "above 0", ok=math.isfinite(value) and value > 0)
    limits = {
        "max_new_tokens": (message.max_new_tokens, 1, MAX_NEW_TOKENS),
        "rollouts_per_question": (message.rollouts_per_question, 1, MAX_ROLLOUTS),
        "rollouts_per_candidate": (message.rollouts_per_candidate, 1, MAX_ROLLOUTS),
        "candidates.student_top_k": (message.candidates.student_top_k, 1, MAX_TOP_K),
        "candidates.teacher_top_k": (message.candidates.teacher_top_k, 0, MAX_TOP_K),
    }
    for name, (value, low, high) in limits.items():
        wrong.require(f"settings.{name}", value, f"from {low} to {high}", ok=low <= value <= high)
    prob = message.candidates.min_student_prob
    wrong.require("settings.candidates.min_student_prob", prob, "at least 0 and below 1", ok=0 <= prob < 1)


def _node_selection(message: scorer_pb2.NodeSelection, wrong: Violations) -> NodeSelection:
    wrong.attempt("settings.nodes.selector", lambda: SELECTORS.get(message.selector))
    maximum = message.max_nodes if message.HasField("max_nodes") else None
    if maximum is not None:
        wrong.require("settings.nodes.max_nodes", maximum, "at least 1", ok=maximum >= 1)
    entropy = message.min_entropy_nats
    wrong.require("settings.nodes.min_entropy_nats", entropy, "at least 0", ok=entropy >= 0)
    negative = [position for position in message.positions if position < 0]
    wrong.require("settings.nodes.positions", negative, "at least 0 each", ok=not negative)
    explicit = message.selector == "explicit"
    wrong.require("settings.nodes.positions", [], "given for `explicit`", ok=bool(message.positions) or not explicit)
    return NodeSelection(message.selector, maximum, entropy, tuple(message.positions))
