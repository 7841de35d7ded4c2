"""What is shown while a run goes on."""

import io
import re

from opdscope import Progress
from opdscope._progress import DiagnosisProgress
from rich.console import Console


def _progress(activity: str, **counts: int) -> Progress:
    values = {"questions": 4, "questions_done": 0, "rollouts_planned": 10, "rollouts_done": 5, "generated_tokens": 1234}
    return Progress(activity=activity, **{**values, **counts})


def _shown(*events: Progress, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, _environ={})
    with DiagnosisProgress(console) as progress:
        progress.activity("loading the student [some/folder]")
        for event in events:
            progress.show(event)
    return file.getvalue()


def test_without_a_terminal_there_is_a_line_for_every_activity() -> None:
    """No control characters, no repetition."""
    text = _shown(_progress("rollouts"), _progress("rollouts"), _progress("targeted rollouts"), terminal=False)
    assert text.splitlines() == [
        "loading the student [some/folder]",
        "rollouts: 0/4 questions, 5/10 rollouts, 1,234 tokens",
        "targeted rollouts: 0/4 questions, 5/10 rollouts, 1,234 tokens",
    ]


def test_a_terminal_shows_a_bar() -> None:
    """Activity, how far, how long so far and still."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", _shown(_progress("targeted rollouts"), terminal=True))
    assert "loading the student [some/folder]" in text
    assert "targeted rollouts" in text
    assert "0/4 questions, 5/10 rollouts, 1,234 tokens" in text
    assert "left" in text
