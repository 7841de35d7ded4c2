"""One question, from its prompt to the alignments of its rollouts.

Two rounds: student rollouts, then targeted rollouts at all their nodes. A round is planned from complete earlier rounds
only. Every sample is verified and stored before it counts; after a restart only what is missing is asked for.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from opdscope.v1 import generator_pb2, scorer_pb2

from opdscope_scorer import tables
from opdscope_scorer.analysis import Analyst, PlannedRollout, Rollout, ScoredRollout
from opdscope_scorer.events import question_event, rollout_event, scored_event
from opdscope_scorer.generators import FinishedSample, GeneratorPool, Prefix
from opdscope_scorer.metrics import ScorerMetrics
from opdscope_scorer.model_thread import ModelThread
from opdscope_scorer.nodes import concat_directions, concat_nodes
from opdscope_scorer.plan import TAIL, PlannedNode, PlannedSample, SampleKey, plan_roots
from opdscope_scorer.pooling import pool_sums
from opdscope_scorer.progress import Tally
from opdscope_scorer.questions import Question
from opdscope_scorer.reduction import Outcomes
from opdscope_scorer.results import Mismatch, QuestionResult, Sums
from opdscope_scorer.run_settings import RunSettings
from opdscope_scorer.scoring import Alignments, score_nodes
from opdscope_scorer.store import Store
from opdscope_scorer.student import Student
from opdscope_scorer.tables import Event, StoredSample


@dataclass
class Diagnosis:
    """Works on one question of a run."""

    run_id: str
    question: Question
    settings: RunSettings
    student: Student
    pool: GeneratorPool
    store: Store
    model: ModelThread
    metrics: ScorerMetrics
    changed: Callable[[], Awaitable[None]]
    """Called when events were written."""
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        """Prepare to analyse with the student's weights."""
        self._analyst = Analyst(self.student, self.settings)
        self._samples: dict[SampleKey, StoredSample] = {}

    async def run(self) -> None:
        """Do what is not done yet, and write the result and its events."""
        self._samples = await self.store.read(
            lambda connection: tables.select_samples(connection, self.run_id, self.question.id)
        )
        for sample in self._samples.values():
            self._count(sample)
        rollouts = await self._student_rollouts()
        planned = [await self.model.run(self._analyst.plan, rollout) for rollout in rollouts]
        self._plan([sample for rollout in planned for node in rollout.nodes for sample in node.samples])
        self.tally.complete = True
        async with asyncio.TaskGroup() as group:
            for rollout in planned:
                for node in rollout.nodes:
                    group.create_task(self._targeted(rollout, node))
        scored = [await self.model.run(self._reduce, rollout) for rollout in planned if rollout.nodes]
        alignments = await self.model.run(self._score, scored)
        await self._finish(rollouts, planned, scored, alignments)
        self._samples.clear()

    async def _student_rollouts(self) -> list[Rollout]:
        """Round 1: the student answers."""
        roots = plan_roots(self.settings.seed, self.question.id, self.settings.rollouts_per_question)
        self._plan(roots)
        await self._generate((), roots, affinity=self.question.id)
        rollouts = []
        for root in roots:
            sample = self._samples[root.key]
            rollouts.append(Rollout(self.question, root.key.rollout, sample.token_ids, sample.success))
        events = [
            rollout_event(
                rollout,
                self._analyst.text(rollout.output),
                self._samples[root.key].finish_reason,
                self.student.loaded.tokenizer,
            )
            for root, rollout in zip(roots, rollouts, strict=True)
        ]
        await self._write_events(events)
        return rollouts

    async def _targeted(self, planned: PlannedRollout, node: PlannedNode) -> None:
        """Round 2 at one node: force the candidates and let the student finish."""
        rollout = planned.rollout
        prefix = rollout.output[: node.position]
        # A token from the tail may end the output; then its success is known at once.
        ending = [sample for sample in node.samples if self._analyst.ends((*prefix, *sample.forced))]
        stop = generator_pb2.FINISH_REASON_STOP_TOKEN
        await self._keep(prefix, [FinishedSample(sample, (), (), stop) for sample in ending])
        others = [sample for sample in node.samples if sample not in ending]
        await self._generate(prefix, others, affinity=rollout.id)

    async def _generate(self, output: tuple[int, ...], samples: Sequence[PlannedSample], affinity: str) -> None:
        """Generate, verify and store those of the samples that are missing."""
        missing = [sample for sample in samples if sample.key not in self._samples]
        if not missing:
            return
        prompt = self._analyst.student_prompt(self.question)
        prefix = Prefix(prompt, output, len(prompt) + self.settings.max_new_tokens, self.settings.sampling)
        async for batch in self.pool.rollout(self.student.loaded, prefix, missing, affinity):
            await self._keep(output, batch)

    async def _keep(self, output: tuple[int, ...], finished: Sequence[FinishedSample]) -> None:
        """Verify samples and store them; then they count."""
        new = [sample for sample in finished if sample.planned.key not in self._samples]
        if not new:
            return
        stored = [
            StoredSample(
                key=sample.planned.key,
                forced=sample.planned.forced[0] if sample.planned.forced else None,
                token_ids=sample.token_ids,
                log_probs=sample.log_probs,
                finish_reason=sample.finish_reason,
                success=self._analyst.verify(self.question, (*output, *sample.planned.forced, *sample.token_ids)),
            )
            for sample in new
        ]
        insert = partial(tables.insert_samples, run_id=self.run_id, question_id=self.question.id, samples=stored)
        await self.store.write(insert)
        for sample in stored:
            self._samples[sample.key] = sample
            self._count(sample)
            self.metrics.sample(root=sample.key.is_root, success=sample.success, tokens=len(sample.token_ids))

    def _reduce(self, planned: PlannedRollout) -> ScoredRollout:
        outcomes = [self._outcomes(node) for node in planned.nodes]
        return self._analyst.reduce(planned, outcomes)

    def _outcomes(self, node: PlannedNode) -> Outcomes:
        """Collect what was observed at a node."""
        by_token: dict[int, list[StoredSample]] = defaultdict(list)
        for planned in node.samples:
            by_token[planned.key.token].append(self._samples[planned.key])
        successes = [
            sum(sample.success for sample in by_token[token]) + known_success
            for token, known_success in zip(node.candidates, node.known_success, strict=True)
        ]
        return Outcomes(
            tokens=node.candidates,
            successes=successes,
            trials=[len(by_token[token]) for token in node.candidates],
            known=node.known,
            tail_tokens=[sample.forced for sample in by_token[TAIL] if sample.forced is not None],
            tail_successes=[sample.success for sample in by_token[TAIL]],
        )

    def _score(self, scored: Sequence[ScoredRollout]) -> list[Alignments]:
        """Score all nodes of the question as one set."""
        if not scored:
            return []
        return score_nodes(
            concat_nodes([rollout.nodes for rollout in scored]),
            [concat_directions(parts) for parts in zip(*(rollout.directions for rollout in scored), strict=True)],
            judgement=self.settings.judgement,
            seed=self.settings.seed,
        )

    async def _finish(
        self,
        rollouts: Sequence[Rollout],
        planned: Sequence[PlannedRollout],
        scored: Sequence[ScoredRollout],
        alignments: Sequence[Alignments],
    ) -> None:
        """Write the events and the result, in one transaction."""
        events, start = [], 0
        sums: list[Sums] = []
        for rollout in scored:
            rows = slice(start, start + len(rollout.nodes))
            events.append(scored_event(rollout, alignments, rows, self.student.loaded.tokenizer))
            success = rollout.planned.rollout.success
            mask_N = np.isin(np.arange(len(alignments[0].plug_in_N)), np.arange(rows.start, rows.stop))
            sums += [Sums(a.teacher, a.objective, success, pool_sums(a, mask_N)) for a in alignments]
            start = rows.stop
        spent = scorer_pb2.Spent(rollouts=self.tally.done, generated_tokens=self.tally.generated_tokens)
        events.append(question_event(self.question.id, rollouts, spent))
        result = QuestionResult(tuple(sums), self._mismatch(planned)).to_json()
        await self.store.write(
            lambda connection: tables.finish_question(connection, self.run_id, self.question.id, result, events)
        )
        self.tally.finished = True
        self.metrics.question(alignments)
        await self.changed()

    def _mismatch(self, planned: Sequence[PlannedRollout]) -> Mismatch:
        """Compare both sides' log-probabilities of the tokens of the student rollouts."""
        total = Mismatch()
        for rollout in planned:
            (root,) = plan_roots(self.settings.seed, self.question.id, rollout.rollout.index + 1)[-1:]
            pairs = zip(rollout.trace.log_prob_L.tolist(), self._samples[root.key].log_probs, strict=True)
            differences = [abs(ours - theirs) for ours, theirs in pairs]
            total += Mismatch(len(differences), sum(differences), max(differences, default=0.0))
        return total

    async def _write_events(self, events: Sequence[Event]) -> None:
        await self.store.write(lambda connection: tables.insert_events(connection, self.run_id, events))
        await self.changed()

    def _plan(self, samples: Sequence[PlannedSample]) -> None:
        self.tally.planned += len(samples)

    def _count(self, sample: StoredSample) -> None:
        self.tally.done += 1
        self.tally.generated_tokens += len(sample.token_ids)
