"""All runs of a scorer: starts, watches, resumes and ends them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import structlog
from opdscope.v1 import scorer_pb2
from opdscope_serving.errors import DomainError, Draining, InvalidRequest, RunExists, RunNotFound, WeightsChanged

from opdscope_scorer import convert, tables
from opdscope_scorer.analysis import Analyst
from opdscope_scorer.diagnosis import Diagnosis
from opdscope_scorer.events import finished_event
from opdscope_scorer.generators import GeneratorPool
from opdscope_scorer.metrics import ScorerMetrics
from opdscope_scorer.model_thread import ModelThread
from opdscope_scorer.progress import Tally, progress
from opdscope_scorer.questions import Question
from opdscope_scorer.results import Mismatch, QuestionResult, summarize
from opdscope_scorer.run_settings import RunSettings
from opdscope_scorer.store import Store
from opdscope_scorer.student import Student
from opdscope_scorer.tables import StoredRun
from opdscope_scorer.violations import Violations

log = structlog.get_logger()

_PAGE = 128
_PROGRESS_SECONDS = 0.5
MAX_QUESTIONS = 100_000


@dataclass
class ActiveRun:
    """A run that is being worked on."""

    run_id: str
    settings: RunSettings
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when questions were added or the run was sealed."""
    task: "asyncio.Task[None] | None" = None
    changes: int = 0
    """Counts what watchers may want to see."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    tallies: dict[str, Tally] = field(default_factory=dict)
    """One for every question, those included that an earlier process finished."""


class Runs:
    """Works on runs with one student and its generators."""

    def __init__(
        self,
        store: Store,
        student: Student,
        pool: GeneratorPool,
        model: ModelThread,
        metrics: ScorerMetrics,
        *,
        questions_at_once: int,
    ) -> None:
        """Prepare; `resume` starts to work."""
        self._store = store
        self._student = student
        self._pool = pool
        self._model = model
        self._metrics = metrics
        self._questions_at_once = questions_at_once
        self._active: dict[str, ActiveRun] = {}
        self._creating = asyncio.Lock()
        self._draining = False

    async def resume(self) -> None:
        """Go on with the runs that an earlier process left."""
        for run in await self._store.read(tables.select_runs):
            if run.state == scorer_pb2.RUN_STATE_RUNNING:
                log.info("run_resumed", run_id=run.run_id)
                self._start(run.run_id, convert.run_settings(scorer_pb2.RunSettings.FromString(run.settings)))

    async def drain(self) -> None:
        """Stop to work; what is finished is stored, and the next process goes on from there."""
        self._draining = True
        tasks = [run.task for run in self._active.values() if run.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in list(self._active.values()):
            await self._notify(run)

    async def create(self, run_id: str, message: scorer_pb2.RunSettings) -> StoredRun:
        """Create a run, or return the one with this id and the same settings.

        Raises:
            InvalidRequest: Id or settings are wrong.
            RunExists: A run with this id has other settings.
        """
        self._refuse_if_draining()
        convert.check_run_id(run_id)
        settings = convert.run_settings(message)
        blob = message.SerializeToString(deterministic=True)
        async with self._creating:
            existing = await self._store.read(lambda c: tables.select_runs(c, run_id))
            if existing:
                if existing[0].settings != blob:
                    raise RunExists(f"a run {run_id!r} with other settings exists; choose another id or delete it")
                return existing[0]
            weights, state = self._student.loaded.weights_version, scorer_pb2.RUN_STATE_RUNNING
            await self._store.write(lambda c: tables.insert_run(c, run_id, blob, weights, state))
            self._start(run_id, settings)
        log.info("run_created", run_id=run_id)
        return await self.get(run_id)

    async def add_questions(
        self, run_id: str, messages: Sequence[scorer_pb2.Question], *, seal: bool
    ) -> tuple[int, int]:
        """Add questions and perhaps seal the run; return how many were new and how many there are.

        Raises:
            RunNotFound: There is no such run.
            InvalidRequest: A question is wrong, or the run takes no more.
        """
        self._refuse_if_draining()
        run = await self.get(run_id)
        settings = convert.run_settings(scorer_pb2.RunSettings.FromString(run.settings))
        stored = {row[0]: row[1] for row in await self._store.read(lambda c: tables.select_questions(c, run_id))}
        new = _new_questions(messages, stored)
        if new and (run.sealed or run.state != scorer_pb2.RUN_STATE_RUNNING):
            raise InvalidRequest.field("questions", f"run {run_id!r} takes no more questions")
        if len(stored) + len(new) > MAX_QUESTIONS:
            raise InvalidRequest.field("questions", f"a run has at most {MAX_QUESTIONS} questions")
        questions = convert.questions(new, settings)
        await self.check_lengths(questions, settings)
        rows = [(message.id, message.SerializeToString(deterministic=True)) for message in new]

        await self._store.write(lambda c: tables.add_questions(c, run_id, rows, seal=seal))
        if active := self._active.get(run_id):
            active.wake.set()
        return len(new), len(stored) + len(new)

    async def check_lengths(self, questions: Sequence[Question], settings: RunSettings) -> None:
        """Make sure that every prompt and its output fit the context.

        Raises:
            InvalidRequest: One does not.
        """
        # Tokenizing needs no weights, so it does not wait for the model's thread.
        violations = await asyncio.to_thread(self._too_long, questions, settings)
        violations.raise_any()

    async def get(self, run_id: str) -> StoredRun:
        """Return a run.

        Raises:
            RunNotFound: There is no such run.
        """
        found = await self._store.read(lambda c: tables.select_runs(c, run_id))
        if not found:
            raise RunNotFound(f"no run {run_id!r}")
        return found[0]

    async def list_runs(self) -> list[StoredRun]:
        """Return all runs, newest first."""
        return await self._store.read(tables.select_runs)

    async def cancel(self, run_id: str) -> StoredRun:
        """Stop a run for good; one that has ended stays as it is.

        Raises:
            RunNotFound: There is no such run.
        """
        await self.get(run_id)
        active = self._active.get(run_id)
        if active and active.task:
            active.task.cancel()
            await asyncio.gather(active.task, return_exceptions=True)
            await self._end(active, scorer_pb2.RUN_STATE_CANCELLED, "")
        return await self.get(run_id)

    async def delete(self, run_id: str) -> None:
        """Delete a run that has ended, with all that it found.

        Raises:
            RunNotFound: There is no such run.
            InvalidRequest: It is still running.
        """
        run = await self.get(run_id)
        if run.state == scorer_pb2.RUN_STATE_RUNNING:
            raise InvalidRequest.field("run_id", f"run {run_id!r} is running; cancel it first")
        await self._store.write(lambda c: tables.delete_run(c, run_id))

    async def watch(self, run_id: str, after: int) -> AsyncIterator[scorer_pb2.WatchRunResponse]:
        """Yield the events after a number as they come, and progress between them; end with the run.

        Raises:
            RunNotFound: There is no such run.
            Draining: The server stops; another call goes on after the last event.
        """
        await self.get(run_id)
        while True:
            active = self._active.get(run_id)
            seen = active.changes if active else 0
            page = await self._store.read(lambda c, after=after: tables.select_events(c, run_id, after, _PAGE))  # type: ignore[misc]
            for sequence, blob in page:
                event = scorer_pb2.WatchRunResponse.FromString(blob)
                event.sequence = after = sequence
                yield event
            if page:
                continue
            if active is None:
                # Looked up before the events were read: nothing can have come since.
                return
            self._refuse_if_draining()
            yield scorer_pb2.WatchRunResponse(progress=progress(active.tallies.values()))
            await _changed(active, seen)

    def _start(self, run_id: str, settings: RunSettings) -> None:
        active = ActiveRun(run_id, settings)
        self._active[run_id] = active
        self._metrics.runs_active.set(len(self._active))
        active.task = asyncio.create_task(self._work(active), name=f"run {run_id}")

    async def _work(self, active: ActiveRun) -> None:
        """Work on a run until it is done, and say how it ended."""
        try:
            await self._diagnose_all(active)
        except asyncio.CancelledError:
            raise
        except Exception as raised:
            error = _first(raised)
            if isinstance(error, DomainError):
                log.warning("run_failed", run_id=active.run_id, error=str(error))
                text = str(error)
            else:
                log.exception("run_crashed", run_id=active.run_id, exc_info=error)
                text = f"internal error ({type(error).__name__}: {error}); the scorer's log has the details"
            await self._end(active, scorer_pb2.RUN_STATE_FAILED, text)
        else:
            await self._end(active, scorer_pb2.RUN_STATE_DONE, "")

    async def _diagnose_all(self, active: ActiveRun) -> None:
        """Work on questions as they come, some at once, until the run is sealed and all are done."""
        await self._check_weights(active.run_id)
        slots = asyncio.Semaphore(self._questions_at_once)
        async with asyncio.TaskGroup() as group:
            while True:
                active.wake.clear()
                run = await self.get(active.run_id)
                for diagnosis in await self._new_diagnoses(active):
                    group.create_task(self._diagnose(active, diagnosis, slots))
                if run.sealed:
                    return
                await active.wake.wait()

    async def _new_diagnoses(self, active: ActiveRun) -> list[Diagnosis]:
        """Return diagnoses of the questions that came since the last time and are not done."""
        rows = await self._store.read(lambda c: tables.select_questions(c, active.run_id))
        new = [row for row in rows if row[0] not in active.tallies]
        spent = await self._store.read(lambda c: tables.select_spent(c, active.run_id)) if not active.tallies else {}
        diagnoses = []
        for question_id, blob, result in new:
            if result is None:
                diagnosis = self._diagnosis(active, blob)
                diagnoses.append(diagnosis)
                active.tallies[question_id] = diagnosis.tally
            else:
                done, tokens = spent.get(question_id, (0, 0))
                active.tallies[question_id] = Tally(
                    done, complete=True, done=done, generated_tokens=tokens, finished=True
                )
        return diagnoses

    async def _check_weights(self, run_id: str) -> None:
        """Refuse to mix rollouts of one weights version with gradients of another."""
        run = await self.get(run_id)
        ours = self._student.loaded.weights_version
        if run.weights_version != ours:
            raise WeightsChanged(f"the run began with weights {run.weights_version}; the student now has {ours}")

    def _diagnosis(self, active: ActiveRun, blob: bytes) -> Diagnosis:
        return Diagnosis(
            run_id=active.run_id,
            question=convert.question(scorer_pb2.Question.FromString(blob)),
            settings=active.settings,
            student=self._student,
            pool=self._pool,
            store=self._store,
            model=self._model,
            metrics=self._metrics,
            changed=lambda: self._notify(active),
        )

    async def _diagnose(self, active: ActiveRun, diagnosis: Diagnosis, slots: asyncio.Semaphore) -> None:
        async with slots:
            await diagnosis.run()
        log.info("question_done", run_id=active.run_id, question_id=diagnosis.question.id)

    async def _end(self, active: ActiveRun, state: "scorer_pb2.RunState", error: str) -> None:
        message = await self._summary(active, state, error)
        event = finished_event(message)
        await self._store.write(lambda c: tables.end_run(c, active.run_id, state, error, event))
        self._active.pop(active.run_id, None)
        self._metrics.runs_active.set(len(self._active))
        self._metrics.runs_finished.labels(scorer_pb2.RunState.Name(state)).inc()
        log.info("run_finished", run_id=active.run_id, state=scorer_pb2.RunState.Name(state))
        await self._notify(active)

    async def _summary(self, active: ActiveRun, state: "scorer_pb2.RunState", error: str) -> scorer_pb2.RunFinished:
        rows = await self._store.read(lambda c: tables.select_questions(c, active.run_id))
        results = [QuestionResult.from_json(row[2]) for row in rows if row[2] is not None]
        settings = active.settings
        pooled = await self._model.run(summarize, results, judgement=settings.judgement, seed=settings.seed)
        mismatch = sum((result.mismatch for result in results), Mismatch())
        run = await self.get(active.run_id)
        message = scorer_pb2.RunFinished(state=state, error=error, pooled=pooled, spent=convert.run_message(run).spent)
        if mismatch.tokens:
            message.policy_mismatch_mean_nats = mismatch.absolute_sum / mismatch.tokens
            message.policy_mismatch_max_nats = mismatch.largest
        return message

    def _too_long(self, questions: Sequence[Question], settings: RunSettings) -> Violations:
        wrong = Violations()
        analyst = Analyst(self._student, settings)
        limit = self._student.loaded.context_length
        for n, question in enumerate(questions):
            prompts = {"the student": settings.student_prompt(question)}
            prompts |= {
                f"teacher {teacher.name!r}": settings.teacher_prompt(question, teacher) for teacher in settings.teachers
            }
            for who, text in prompts.items():
                length = len(analyst.tokenize(text))
                if length == 0:
                    wrong.add(f"questions[{n}]", f"the prompt for {who} has no tokens (question {question.id!r})")
                if length + settings.max_new_tokens > limit:
                    wrong.add(
                        f"questions[{n}]",
                        f"the prompt for {who} has {length} tokens; with max_new_tokens {settings.max_new_tokens} "
                        f"it exceeds the context of {limit} (question {question.id!r})",
                    )
        return wrong

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise Draining("the scorer is shutting down; what is finished is stored")

    async def _notify(self, active: ActiveRun) -> None:
        async with active.changed:
            active.changes += 1
            active.changed.notify_all()


async def _changed(active: ActiveRun, seen: int) -> None:
    """Wait until something has changed since `seen`, or it is time to tell the progress again."""
    try:
        async with asyncio.timeout(_PROGRESS_SECONDS), active.changed:
            await active.changed.wait_for(lambda: active.changes != seen)
    except TimeoutError:
        pass


def _new_questions(messages: Sequence[scorer_pb2.Question], stored: dict[str, bytes]) -> list[scorer_pb2.Question]:
    """Return the questions that are not stored; those that are must be the same."""
    wrong = Violations()
    for n, message in enumerate(messages):
        if message.id in stored and stored[message.id] != message.SerializeToString(deterministic=True):
            wrong.add(f"questions[{n}].id", f"the run has another question {message.id!r}")
    wrong.raise_any()
    return [message for message in messages if message.id not in stored]


def _first(error: BaseException) -> BaseException:
    """Return the first real error of nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
