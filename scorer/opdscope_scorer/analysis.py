"""What a diagnosis computes with the student's weights. Runs on the model's thread; knows nothing of gRPC or storage.

Legend of shape suffixes: N nodes, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from opdscope_serving.text import output_text
from torch import Tensor

from opdscope_scorer.nodes import Direction, Nodes, concat_directions, concat_nodes
from opdscope_scorer.objectives import ObjectiveInputs
from opdscope_scorer.plan import PlannedNode, plan_samples
from opdscope_scorer.policy import kl_nats, sampling_log_probs
from opdscope_scorer.questions import Question
from opdscope_scorer.reduction import Outcomes, reduce_direction, reduce_nodes
from opdscope_scorer.run_settings import RunSettings
from opdscope_scorer.selection import select_candidates, select_nodes
from opdscope_scorer.student import PolicyTrace, Student

# Nodes whose distributions are in memory together: 16 nodes × 5 distributions × 150k tokens × 8 bytes = 96 MB.
_NODES_AT_ONCE = 16


@dataclass(frozen=True)
class Rollout:
    """A student rollout of a question."""

    question: Question
    index: int
    output: tuple[int, ...]
    success: bool

    @property
    def id(self) -> str:
        """Identifies it within its run."""
        return f"{self.question.id}/{self.index}"


@dataclass(frozen=True)
class PlannedRollout:
    """A rollout with its nodes."""

    rollout: Rollout
    nodes: tuple[PlannedNode, ...]
    trace: PolicyTrace


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout's nodes and directions in reduced form, and facts about its nodes."""

    planned: PlannedRollout
    outcomes: tuple[Outcomes, ...]
    nodes: Nodes
    directions: tuple[Direction, ...]
    """One for every teacher and objective, teachers outermost."""
    divergence_nats: tuple[tuple[float, ...], ...]
    """KL(q || P) of every teacher at every node."""


class Analyst:
    """Plans and reduces the rollouts of one run."""

    def __init__(self, student: Student, settings: RunSettings) -> None:
        """Work with these weights under these settings."""
        self._student = student
        self._settings = settings
        self._tokenizer = student.loaded.tokenizer

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a prompt."""
        return tuple(self._tokenizer(text)["input_ids"])

    def student_prompt(self, question: Question) -> tuple[int, ...]:
        """Return the tokens that the student sees."""
        return self.tokenize(self._settings.student_prompt(question))

    def text(self, output: Sequence[int]) -> str:
        """Return an output's text up to its stop string."""
        return output_text(self._tokenizer, output, self._settings.sampling.stop_strings).text

    def verify(self, question: Question, output: Sequence[int]) -> bool:
        """Return whether an output is a success."""
        return self._settings.verifier.check(self.text(output), question.answer)

    def ends(self, output: Sequence[int]) -> bool:
        """Return whether an output is complete with its last token."""
        sampling = self._settings.sampling
        stops = self._student.loaded.eos_token_ids | set(sampling.stop_token_ids)
        return (
            output[-1] in stops
            or len(output) >= self._settings.max_new_tokens
            or output_text(self._tokenizer, output, sampling.stop_strings).stopped
        )

    def plan(self, rollout: Rollout) -> PlannedRollout:
        """Choose nodes and candidates, and name every sample that is needed."""
        settings, sampling = self._settings, self._settings.sampling
        prompt = self.student_prompt(rollout.question)
        trace = self._student.trace(prompt, rollout.output, temperature=sampling.temperature, top_p=sampling.top_p)
        positions = select_nodes(settings.nodes, trace.entropy_L)
        planned: list[PlannedNode] = []
        for chunk in _chunks(positions):
            log_p_NV = self._policy(prompt, rollout, chunk)
            teachers_NV = [self._teacher(n, rollout, chunk) for n in range(len(settings.teachers))]
            taken = [rollout.output[position] for position in chunk]
            candidates = select_candidates(settings.candidates, log_p_NV, teachers_NV, taken)
            planned += [
                self._plan_node(rollout, position, tokens, log_p_NV[n])
                for n, (position, tokens) in enumerate(zip(chunk, candidates, strict=True))
            ]
        return PlannedRollout(rollout, tuple(planned), trace)

    def reduce(self, planned: PlannedRollout, outcomes: Sequence[Outcomes]) -> ScoredRollout:
        """Reduce the distributions at a rollout's nodes to what estimation needs of them."""
        nodes: list[Nodes] = []
        directions: list[list[Direction]] = []
        divergence: list[list[float]] = [[] for _ in self._settings.teachers]
        prompt = self.student_prompt(planned.rollout.question)
        for chunk in _chunks(range(len(planned.nodes))):
            positions = [planned.nodes[n].position for n in chunk]
            keys = [f"{planned.rollout.id}@{position}" for position in positions]
            log_p_NV = self._policy(prompt, planned.rollout, positions)
            nodes.append(reduce_nodes(log_p_NV, [outcomes[n] for n in chunk], keys))
            directions.append(self._directions(prompt, planned.rollout, positions, log_p_NV, nodes[-1], divergence))
        return ScoredRollout(
            planned=planned,
            outcomes=tuple(outcomes),
            nodes=concat_nodes(nodes),
            directions=tuple(concat_directions(parts) for parts in zip(*directions, strict=True)),
            divergence_nats=tuple(map(tuple, divergence)),
        )

    def _plan_node(self, rollout: Rollout, position: int, candidates: list[int], log_p_V: Tensor) -> PlannedNode:
        outputs = [(*rollout.output[:position], token) for token in candidates]
        known = [self.ends(output) for output in outputs]
        samples = plan_samples(
            self._settings.seed,
            rollout.question.id,
            rollout.index,
            position,
            candidates=candidates,
            log_p_V=log_p_V,
            count=self._settings.rollouts_per_candidate,
        )
        ending = {token for token, ends in zip(candidates, known, strict=True) if ends}
        return PlannedNode(
            position=position,
            candidates=tuple(candidates),
            known=tuple(known),
            known_success=tuple(
                ends and self.verify(rollout.question, output) for output, ends in zip(outputs, known, strict=True)
            ),
            samples=tuple(sample for sample in samples if sample.key.token not in ending),
        )

    def _policy(self, prompt: Sequence[int], rollout: Rollout, positions: Sequence[int]) -> Tensor:
        """Return log P [N, V] of the sampling policy."""
        sampling = self._settings.sampling
        logits_NV = self._student.logits(prompt, rollout.output, positions)
        return sampling_log_probs(logits_NV, temperature=sampling.temperature, top_p=sampling.top_p)

    def _teacher_logits(self, teacher: int, rollout: Rollout, positions: Sequence[int]) -> Tensor:
        text = self._settings.teacher_prompt(rollout.question, self._settings.teachers[teacher])
        return self._student.logits(self.tokenize(text), rollout.output, positions)

    def _teacher(self, teacher: int, rollout: Rollout, positions: Sequence[int]) -> Tensor:
        """Return log q [N, V] at the loss's temperature."""
        logits_NV = self._teacher_logits(teacher, rollout, positions)
        return sampling_log_probs(logits_NV, temperature=self._settings.loss_temperature)

    def _directions(
        self,
        prompt: Sequence[int],
        rollout: Rollout,
        positions: Sequence[int],
        log_p_NV: Tensor,
        nodes: Nodes,
        divergence: list[list[float]],
    ) -> list[Direction]:
        """Return all directions at some of a rollout's nodes, and add to the teachers' divergences."""
        settings, directions = self._settings, []
        student_logits_NV = self._student.logits(prompt, rollout.output, positions)
        loss_log_p_NV = sampling_log_probs(student_logits_NV, temperature=settings.loss_temperature)
        for number, teacher in enumerate(settings.teachers):
            teacher_logits_NV = self._teacher_logits(number, rollout, positions)
            log_q_NV = sampling_log_probs(teacher_logits_NV, temperature=settings.loss_temperature)
            divergence[number] += kl_nats(log_q_NV, loss_log_p_NV).tolist()
            inputs = ObjectiveInputs(
                log_p_NV=loss_log_p_NV,
                log_q_NV=log_q_NV,
                temperature=settings.loss_temperature,
                student_logits_NV=student_logits_NV,
                teacher_logits_NV=teacher_logits_NV,
            )
            for objective in settings.objectives:
                names = {"teacher": teacher.name, "objective": objective.canonical}
                d_NV = objective.direction(inputs)
                directions.append(reduce_direction(nodes, log_p_NV, d_NV, log_q_NV, **names))
        return directions


def _chunks(items: Sequence[int]) -> list[list[int]]:
    return [list(items[start : start + _NODES_AT_ONCE]) for start in range(0, len(items), _NODES_AT_ONCE)]
