"""What the scorer has paid for stays, in its order."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from opdscope_scorer import tables
from opdscope_scorer.plan import SampleKey
from opdscope_scorer.store import StateError, Store
from opdscope_scorer.tables import Event, StoredSample

SAMPLE = StoredSample(SampleKey(0, 4, 17, 2), 17, (1, 2, 3), (-0.5, -1.0, -0.25), 2, success=True)


def _create(connection: sqlite3.Connection) -> None:
    tables.insert_run(connection, "r", b"settings", "w1", 1)


async def _filled(directory: Path) -> None:
    store = Store(directory)
    await store.write(_create)
    await store.write(lambda c: tables.add_questions(c, "r", [("q1", b"1"), ("q2", b"2")], seal=True))
    await store.write(lambda c: tables.insert_samples(c, "r", "q1", [SAMPLE]))
    await store.write(lambda c: tables.insert_events(c, "r", [Event("a", b"A"), Event("b", b"B")]))
    await store.close()


def test_everything_is_there_after_closing_and_opening(tmp_path: Path) -> None:
    """Runs, questions, samples and events."""

    async def read() -> tuple[object, ...]:
        await _filled(tmp_path)
        store = Store(tmp_path)
        (run,) = await store.read(tables.select_runs)
        questions = await store.read(lambda c: tables.select_questions(c, "r"))
        samples = await store.read(lambda c: tables.select_samples(c, "r", "q1"))
        events = await store.read(lambda c: tables.select_events(c, "r", 1, 100))
        await store.close()
        return run, questions, samples, events

    run, questions, samples, events = asyncio.run(read())
    assert (run.run_id, run.settings, run.questions, run.questions_done) == ("r", b"settings", 2, 0)
    assert (run.sealed, run.last_sequence, run.rollouts, run.generated_tokens) == (1, 2, 1, 3)
    assert questions == [("q1", b"1", None), ("q2", b"2", None)]
    assert samples == {SAMPLE.key: SAMPLE}
    assert events == [(2, b"B")]


def test_events_happen_once_and_keep_their_numbers(tmp_path: Path) -> None:
    """What is written again after a restart is left out, and numbers have no gaps."""

    async def write() -> list[tuple[int, bytes]]:
        await _filled(tmp_path)
        store = Store(tmp_path)
        await store.write(lambda c: tables.insert_events(c, "r", [Event("b", b"other"), Event("c", b"C")]))
        events = await store.read(lambda c: tables.select_events(c, "r", 0, 100))
        await store.close()
        return events

    assert asyncio.run(write()) == [(1, b"A"), (2, b"B"), (3, b"C")]


def test_a_change_that_fails_undoes_itself_alone(tmp_path: Path) -> None:
    """Changes that share its transaction are kept."""

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO events VALUES ('r', 9, 'half', x'00')")
        raise RuntimeError("on purpose")

    async def write() -> tuple[list[object], list[tuple[int, bytes]]]:
        store = Store(tmp_path)
        await store.write(_create)
        good = lambda key: lambda c: tables.insert_events(c, "r", [Event(key, key.encode())])  # noqa: E731
        results = await asyncio.gather(
            store.write(good("a")), store.write(fail), store.write(good("b")), return_exceptions=True
        )
        events = await store.read(lambda c: tables.select_events(c, "r", 0, 100))
        await store.close()
        return results, events

    results, events = asyncio.run(write())
    assert [type(result) for result in results] == [type(None), RuntimeError, type(None)]
    assert events == [(1, b"a"), (2, b"b")]


def test_deleting_a_run_deletes_all_of_it(tmp_path: Path) -> None:
    """Nothing of it remains in any table."""

    async def delete() -> list[int]:
        await _filled(tmp_path)
        store = Store(tmp_path)
        await store.write(lambda c: tables.delete_run(c, "r"))
        names = ("runs", "questions", "samples", "events")
        counts = [
            await store.read(lambda c, name=name: c.execute(f"SELECT count(*) FROM {name}").fetchone()[0])  # noqa: S608
            for name in names
        ]
        await store.close()
        return counts

    assert asyncio.run(delete()) == [0, 0, 0, 0]


def test_a_directory_belongs_to_one_scorer(tmp_path: Path) -> None:
    """A second one is told so."""

    async def twice() -> None:
        store = Store(tmp_path)
        try:
            with pytest.raises(StateError, match="in use by another scorer"):
                Store(tmp_path)
        finally:
            await store.close()
        await Store(tmp_path).close()

    asyncio.run(twice())


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    """Never silently begun anew."""
    (tmp_path / "state.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StateError, match=r"state\.sqlite cannot be used as a database"):
        Store(tmp_path)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """An older scorer must not write into it."""
    connection = sqlite3.connect(tmp_path / "state.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="schema version 99; this scorer knows version 1"):
        Store(tmp_path)
