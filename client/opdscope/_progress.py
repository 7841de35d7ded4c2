"""Shows on stderr what is being done, how far it is and how long it still takes."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from opdscope import _types

_QUIET_SECONDS = 10.0


class DiagnosisProgress:
    """A bar on a terminal; elsewhere a line when the activity changes, and every ten seconds at most."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = _bar(console) if console.is_terminal else None
        self._task: TaskID | None = None
        self._last_line = ("", 0.0)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar. Idempotent."""
        if self._bar:
            self._bar.stop()

    def activity(self, text: str) -> None:
        """Something is being done whose length is unknown."""
        if self._bar is None:
            self._line(text, "")
        elif self._task is None:
            self._task = self._bar.add_task(text, total=None, counts="")
        else:
            self._bar.update(self._task, description=text)

    def show(self, event: _types.RunEvent) -> None:
        """Take notice of an event."""
        if isinstance(event, _types.Progress):
            self._advance(event.activity or "working", event)

    def _advance(self, activity: str, event: _types.Progress) -> None:
        counts = (
            f"{event.questions_done}/{event.questions} questions, "
            f"{event.rollouts_done:,}/{event.rollouts_planned:,} rollouts, {event.generated_tokens:,} tokens"
        )
        if self._bar is None:
            self._line(activity, counts)
            return
        self.activity(activity)
        if self._task is not None:
            total = event.rollouts_planned or None  # the scorer adds what it guesses of questions not yet planned
            self._bar.update(self._task, completed=event.rollouts_done, total=total, counts=counts)

    def _line(self, activity: str, counts: str) -> None:
        last_activity, last_time = self._last_line
        now = time.monotonic()
        if activity == last_activity and now - last_time < _QUIET_SECONDS:
            return
        self._last_line = (activity, now)
        self._console.print(f"{activity}: {counts}" if counts else activity, markup=False, highlight=False)


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
