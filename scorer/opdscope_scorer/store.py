"""Everything a scorer has paid for, in SQLite under its state directory.

One thread writes; all writes that wait are one transaction, so that many small ones cost one flush to disk.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from opdscope_scorer.tables import SCHEMA, SCHEMA_VERSION

T = TypeVar("T")


class StateError(ValueError):
    """The state directory cannot be used."""


class Store:
    """The database. Methods may be called from one event loop."""

    def __init__(self, directory: Path) -> None:
        """Open or create the database in this directory, which no other process may be using.

        Raises:
            StateError: The directory cannot be used.
        """
        self._lock = _lock(directory)
        try:
            self._connection = _open(directory / "state.sqlite")
        except StateError:
            self._lock.release()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._waiting: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Finish what is waiting, and release the directory."""
        if self._flushing:
            await self._flushing
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()
        self._lock.release()

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Apply a change, together with others that wait, and return its result once it is on disk."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, future))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        # A caller that goes away does not undo what others wait for as well.
        return await asyncio.shield(future)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of a query."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, query, self._connection)

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            changes = [change for change, _ in batch]
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._thread, _apply, self._connection, changes)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(result)
                else:
                    future.set_result(result)


def _apply(connection: sqlite3.Connection, changes: Sequence[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
    """Apply changes in one transaction; one that fails is undone alone."""
    results: list[Any] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for change in changes:
            connection.execute("SAVEPOINT change")
            try:
                results.append(change(connection))
            except Exception as error:  # noqa: BLE001 - it belongs to the caller of this change
                connection.execute("ROLLBACK TO change")
                results.append(error)
            connection.execute("RELEASE change")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return [error] * len(changes)
    return results


def _lock(directory: Path) -> FileLock:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / "lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StateError(f"state directory {directory} is in use by another scorer") from error
    except OSError as error:
        raise StateError(f"state directory {directory} cannot be used: {error.strerror or error}") from error
    return lock


def _open(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    except sqlite3.Error as error:
        raise StateError(f"{path} cannot be used as a database: {error}") from error
    if version not in {0, SCHEMA_VERSION}:
        raise StateError(f"{path} has schema version {version}; this scorer knows version {SCHEMA_VERSION}")
    return connection
