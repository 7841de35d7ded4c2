"""How far a run is."""

from collections.abc import Iterable
from dataclasses import dataclass

from opdscope.v1 import scorer_pb2


@dataclass
class Tally:
    """What has been planned and done for a question."""

    planned: int = 0
    """Samples that are planned so far."""
    complete: bool = False
    """Whether all rounds are planned."""
    done: int = 0
    """Samples that are stored."""
    generated_tokens: int = 0
    finished: bool = False


def progress(tallies: Iterable[Tally]) -> scorer_pb2.Progress:
    """Return the progress of a run, given a tally for each of its questions."""
    every = list(tallies)
    planned = [tally.planned for tally in every if tally.complete]
    # Questions that are not planned yet will cost about as much as those that are.
    guess = sum(planned) / len(planned) if planned else 0.0
    total = sum(tally.planned if tally.complete else max(tally.planned, guess) for tally in every)
    return scorer_pb2.Progress(
        questions=len(every),
        questions_done=sum(tally.finished for tally in every),
        rollouts_planned=round(total),
        rollouts_done=sum(tally.done for tally in every),
        generated_tokens=sum(tally.generated_tokens for tally in every),
        activity=_activity(every),
    )


def _activity(tallies: list[Tally]) -> str:
    begun = [tally for tally in tallies if tally.planned and not tally.finished]
    if not begun:
        if not tallies:
            return "waiting for questions"
        return "all questions are done" if all(tally.finished for tally in tallies) else "starting"
    if all(tally.complete and tally.done == tally.planned for tally in begun):
        return "scoring tokens"
    if any(tally.complete for tally in begun):
        return "targeted rollouts"
    return "student rollouts"
