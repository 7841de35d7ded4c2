"""Tables of the state database, and all changes and queries, each to be passed to `Store.write` or `Store.read`."""

import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdscope_scorer.plan import SampleKey

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    settings BLOB NOT NULL,          -- opdscope.v1.RunSettings
    weights_version TEXT NOT NULL,   -- of the student that the run began with
    created REAL NOT NULL,
    state INTEGER NOT NULL,          -- opdscope.v1.RunState
    sealed INTEGER NOT NULL,         -- no more questions will come
    error TEXT NOT NULL
) STRICT;
CREATE TABLE questions (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    question_id TEXT NOT NULL,
    question BLOB NOT NULL,          -- opdscope.v1.Question
    result TEXT,                     -- JSON, once it is done
    PRIMARY KEY (run_id, question_id)
) STRICT;
CREATE TABLE samples (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    question_id TEXT NOT NULL,
    rollout INTEGER NOT NULL,
    position INTEGER NOT NULL,
    token INTEGER NOT NULL,
    sample INTEGER NOT NULL,
    forced INTEGER,                  -- the forced token, if any
    token_ids BLOB NOT NULL,         -- int32, sampled after the forced token
    log_probs BLOB NOT NULL,         -- float32, of these
    finish_reason INTEGER NOT NULL,  -- opdscope.v1.FinishReason
    success INTEGER NOT NULL,
    PRIMARY KEY (run_id, question_id, rollout, position, token, sample)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    key TEXT NOT NULL,               -- what the event is about: it happens once
    event BLOB NOT NULL,             -- opdscope.v1.WatchRunResponse
    PRIMARY KEY (run_id, sequence),
    UNIQUE (run_id, key)
) STRICT;
"""


@dataclass(frozen=True)
class StoredRun:
    """A row of `runs`, with its counts."""

    run_id: str
    settings: bytes
    weights_version: str
    created: float
    state: int
    sealed: int
    error: str
    questions: int
    questions_done: int
    last_sequence: int
    rollouts: int
    generated_tokens: int


@dataclass(frozen=True)
class StoredSample:
    """A finished and verified sample."""

    key: SampleKey
    forced: int | None
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: int
    success: bool


@dataclass(frozen=True)
class Event:
    """An event before it has a number: what it is about, and the serialized message."""

    key: str
    message: bytes


def insert_run(connection: sqlite3.Connection, run_id: str, settings: bytes, weights_version: str, state: int) -> None:
    """Create a run."""
    connection.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?, ?, 0, '')", (run_id, settings, weights_version, time.time(), state)
    )


def end_run(connection: sqlite3.Connection, run_id: str, state: int, error: str, event: Event) -> None:
    """Set a run's final state and write its last event."""
    connection.execute("UPDATE runs SET state = ?, error = ? WHERE run_id = ?", (state, error, run_id))
    insert_events(connection, run_id, [event])


def delete_run(connection: sqlite3.Connection, run_id: str) -> None:
    """Delete a run with all that belongs to it."""
    connection.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))


def add_questions(
    connection: sqlite3.Connection, run_id: str, questions: Iterable[tuple[str, bytes]], *, seal: bool
) -> None:
    """Add questions at the end, and perhaps say that no more will come."""
    (count,) = connection.execute("SELECT count(*) FROM questions WHERE run_id = ?", (run_id,)).fetchone()
    rows = [(run_id, count + n, question_id, message) for n, (question_id, message) in enumerate(questions)]
    connection.executemany("INSERT INTO questions VALUES (?, ?, ?, ?, NULL)", rows)
    if seal:
        connection.execute("UPDATE runs SET sealed = 1 WHERE run_id = ?", (run_id,))


def insert_samples(
    connection: sqlite3.Connection, run_id: str, question_id: str, samples: Sequence[StoredSample]
) -> None:
    """Add finished samples; one that is there already stays as it is."""
    rows = [
        (
            *(run_id, question_id, s.key.rollout, s.key.position, s.key.token, s.key.index, s.forced),
            np.array(s.token_ids, "<i4").tobytes(),
            np.array(s.log_probs, "<f4").tobytes(),
            s.finish_reason,
            s.success,
        )
        for s in samples
    ]
    connection.executemany(f"INSERT OR IGNORE INTO samples VALUES ({', '.join('?' * 11)})", rows)  # noqa: S608 - no input


def insert_events(connection: sqlite3.Connection, run_id: str, events: Sequence[Event]) -> None:
    """Give events their numbers; one about something that has happened already is left out."""
    for event in events:
        connection.execute(
            """
            INSERT OR IGNORE INTO events
            SELECT ?1, coalesce(max(sequence), 0) + 1, ?2, ?3 FROM events WHERE run_id = ?1
            """,
            (run_id, event.key, event.message),
        )


def finish_question(
    connection: sqlite3.Connection, run_id: str, question_id: str, result: str, events: Sequence[Event]
) -> None:
    """Write a question's result and its events."""
    connection.execute(
        "UPDATE questions SET result = ? WHERE run_id = ? AND question_id = ?", (result, run_id, question_id)
    )
    insert_events(connection, run_id, events)


def select_runs(connection: sqlite3.Connection, run_id: str | None = None) -> list[StoredRun]:
    """Return one run or all, newest first."""
    rows = connection.execute(
        """
        SELECT run_id, settings, weights_version, created, state, sealed, error,
            (SELECT count(*) FROM questions q WHERE q.run_id = r.run_id),
            (SELECT count(*) FROM questions q WHERE q.run_id = r.run_id AND result IS NOT NULL),
            (SELECT coalesce(max(sequence), 0) FROM events e WHERE e.run_id = r.run_id),
            (SELECT count(*) FROM samples s WHERE s.run_id = r.run_id),
            (SELECT coalesce(sum(length(token_ids)) / 4, 0) FROM samples s WHERE s.run_id = r.run_id)
        FROM runs r WHERE ?1 IS NULL OR run_id = ?1 ORDER BY created DESC, run_id
        """,
        (run_id,),
    )
    return [StoredRun(*row) for row in rows]


def select_questions(connection: sqlite3.Connection, run_id: str) -> list[tuple[str, bytes, str | None]]:
    """Return id, message and result of a run's questions, in their order."""
    return connection.execute(
        "SELECT question_id, question, result FROM questions WHERE run_id = ? ORDER BY ordinal", (run_id,)
    ).fetchall()


def select_spent(connection: sqlite3.Connection, run_id: str) -> dict[str, tuple[int, int]]:
    """Return the number of samples, and of their tokens, by question."""
    rows = connection.execute(
        "SELECT question_id, count(*), sum(length(token_ids)) / 4 FROM samples WHERE run_id = ? GROUP BY question_id",
        (run_id,),
    )
    return {question_id: (samples, tokens) for question_id, samples, tokens in rows}


def select_samples(connection: sqlite3.Connection, run_id: str, question_id: str) -> dict[SampleKey, StoredSample]:
    """Return a question's finished samples."""
    rows = connection.execute(
        """
        SELECT rollout, position, token, sample, forced, token_ids, log_probs, finish_reason, success
        FROM samples WHERE run_id = ? AND question_id = ?
        """,
        (run_id, question_id),
    )
    return {sample.key: sample for sample in map(_sample, rows)}


def select_events(connection: sqlite3.Connection, run_id: str, after: int, limit: int) -> list[tuple[int, bytes]]:
    """Return numbers and messages of the events after a number."""
    return connection.execute(
        "SELECT sequence, event FROM events WHERE run_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
        (run_id, after, limit),
    ).fetchall()


def _sample(row: Any) -> StoredSample:  # noqa: ANN401 - sqlite3's rows have no types
    return StoredSample(
        key=SampleKey(*row[:4]),
        forced=row[4],
        token_ids=tuple(np.frombuffer(row[5], "<i4").tolist()),
        log_probs=tuple(np.frombuffer(row[6], "<f4").tolist()),
        finish_reason=row[7],
        success=bool(row[8]),
    )
