"""The summary of a run as text of at most 80 columns that can be read without colour."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from opdscope._findings import Findings, TellingToken
from opdscope._types import (
    Candidate,
    Correctness,
    EvidenceNode,
    IntervalScope,
    PooledAlignment,
    RunFinished,
    Status,
    Tail,
)

WIDTH = 80
MISSING = "–"

_STYLES = {Status.HELPS: "green", Status.HURTS: "red", Status.NEUTRAL: "cyan", Status.UNDETERMINED: "dim"}
_HEAD = f"{'':<12}{'pooled':<23}{'mean cosine':<14}{'helps':>6}{'hurts':>6}{'neutr':>6}{'undet':>6}{'nodes':>7}"
_SCOPES = {
    IntervalScope.THESE_NODES: "these nodes: the noise of the rollouts only",
    IntervalScope.QUESTIONS: "questions like these",
}


def summary(findings: Findings, finished: RunFinished) -> Iterator[Text]:
    """All lines: the table, what was spent, the most telling tokens."""
    yield from alignment_table(finished.pooled)
    yield Text()
    yield from _totals(findings, finished)
    yield Text()
    yield from telling_tokens(findings.telling_tokens())


def alignment_table(pooled: Sequence[PooledAlignment]) -> Iterator[Text]:
    """A block for every teacher and objective, a line for correct and for incorrect rollouts."""
    if not pooled:
        yield Text("No node was scored, so there are no alignments.")
        return
    yield Text(_HEAD, style="bold")
    blocks = {(row.teacher, row.objective): None for row in pooled}
    for teacher, objective in blocks:
        yield Text(_cut(f"{objective} under {teacher}", WIDTH), style="bold")
        for correctness in (Correctness.CORRECT, Correctness.INCORRECT):
            rows = [row for row in pooled if (row.teacher, row.objective) == (teacher, objective)]
            yield _row(correctness, next((row for row in rows if row.correctness is correctness), None))
    yield from _legend(pooled)


def _row(correctness: Correctness, row: PooledAlignment | None) -> Text:
    label = f"  {correctness:<10}"
    if row is None or row.nodes == 0:
        return Text(f"{label}{MISSING} no such nodes", style="dim")
    counts = (row.helps, row.hurts, row.neutral, row.undetermined)
    shares = "".join(f"{f'{100 * count / row.nodes:.0f}%':>6}" for count in counts)
    return Text.assemble(
        label,
        (f"{_interval(row.pooled, row.pooled_low, row.pooled_high):<23}", _sign_style(row.pooled_low, row.pooled_high)),
        f"{_mean(row):<14}{shares}{row.nodes:>7,}",
    )


def _legend(pooled: Sequence[PooledAlignment]) -> Iterator[Text]:
    scopes = {row.scope for row in pooled}
    about = "; ".join(text for scope, text in _SCOPES.items() if scope in scopes)
    if about:
        yield Text(f"Intervals in brackets are about {about}.", style="dim")
    yield Text("mean cosine: of the raw success rates, ± half its interval over nodes.", style="dim")
    dropped = sum(row.dropped_nodes for row in pooled if row.correctness is not Correctness.ALL)
    if dropped:
        yield Text("It leaves out nodes where all outcomes are equal and no cosine exists.", style="dim")


def _totals(findings: Findings, finished: RunFinished) -> Iterator[Text]:
    rate = f"{findings.successes / findings.rollouts:.0%}" if findings.rollouts else MISSING
    yield Text(
        f"student    {findings.successes} of {findings.rollouts} rollouts correct ({rate}), {findings.nodes:,} nodes"
    )
    yield Text(f"spent      {finished.spent.rollouts:,} rollouts, {finished.spent.generated_tokens:,} generated tokens")
    mean, largest = finished.policy_mismatch_mean_nats, finished.policy_mismatch_max_nats
    if mean is None or largest is None:
        yield Text(f"mismatch   {MISSING} (not measured)")
    else:
        yield Text(f"mismatch   generator and scorer differ by {mean:.1e} nats a token, at most {largest:.1e}")


def telling_tokens(tokens: Sequence[TellingToken]) -> Iterator[Text]:
    """Each token in its text, with what came of its candidates."""
    if not tokens:
        yield Text("No token tells anything: no alignment could be computed.")
        return
    determined = sum(token.determined for token in tokens)
    yield Text("Most telling tokens", style="bold")
    if not determined:
        yield Text("None is determined: that takes more rollouts per candidate. The strongest hints:")
    for token in tokens:
        yield Text()
        yield from _telling_token(token)


def _telling_token(token: TellingToken) -> Iterator[Text]:
    row, rollout = token.alignment, token.rollout
    verdict = f"{row.objective} under {row.teacher} "
    yield Text.assemble(
        _cut(verdict, 40),
        (str(row.status), _STYLES[row.status]),
        f"  {_interval(row.alignment, row.low, row.high)}" if token.determined else f"  {_evidence_strength(token)}",
    )
    outcome = "correct" if rollout.success else "incorrect"
    yield Text(_cut(f"  {rollout.rollout_id} ({outcome}), output token {row.position}", WIDTH), style="dim")
    yield _snippet(rollout.token_texts, row.position)
    yield Text(f"  {'token':<24}{'P':>8}{'q':>8}{'successes':>12}", style="dim")
    for candidate in token.node.candidates:
        yield _candidate_line(candidate, token.node, row.teacher)
    if token.node.tail:
        yield Text(f"  {'(all others)':<24}{_outcomes(token.node.tail, row.teacher)}")


def _evidence_strength(token: TellingToken) -> str:
    numerator, error = token.alignment.numerator, token.alignment.numerator_se
    if numerator is None or not error:
        return MISSING
    return f"numerator {numerator / error:+.1f} standard errors from 0"


def _snippet(texts: Sequence[str], position: int) -> Text:
    """The text around the token, which stands in brackets."""
    before = _visible("".join(texts[:position]))
    token = _cut(_visible(texts[position]), WIDTH // 2) if position < len(texts) else ""
    after = _visible("".join(texts[position + 1 :]))
    room = WIDTH - len(token) - len("  …[]")
    before = before if len(before) <= room * 2 // 3 else f"…{before[-(room * 2 // 3) :]}"
    after = _cut(after, room - len(before) + 1)
    return Text.assemble("  ", before, ("[", "bold"), (token, "bold reverse"), ("]", "bold"), after)


def _candidate_line(candidate: Candidate, node: EvidenceNode, teacher: str) -> Text:
    text = f"id {candidate.token_id}" if candidate.text is None else f'"{_visible(candidate.text)}"'
    mark = ">" if candidate.token_id == node.taken_token_id else " "
    return Text(f"{mark} {_cut(text, 23):<24}{_outcomes(candidate, teacher)}")


def _outcomes(outcomes: Candidate | Tail, teacher: str) -> str:
    if isinstance(outcomes, Candidate) and outcomes.known:
        successes = "ends, right" if outcomes.successes else "ends, wrong"
    else:
        successes = f"{outcomes.successes}/{outcomes.trials}" if outcomes.trials else MISSING
    q = outcomes.teacher_probs.get(teacher)
    return f"{outcomes.student_prob:>8.3f}{MISSING if q is None else f'{q:.3f}':>8}{successes:>12}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "undetermined" if low is None or high is None else f"undet. [{low:+.2f}, {high:+.2f}]"
    if low is None or high is None:
        return f"{value:+.2f} (no interval)"
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _mean(row: PooledAlignment) -> str:
    if row.mean_plug_in is None:
        return MISSING
    if row.mean_low is None or row.mean_high is None:
        return f"{row.mean_plug_in:+.3f}"
    return f"{row.mean_plug_in:+.3f} ±{(row.mean_high - row.mean_low) / 2:.3f}"


def _sign_style(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "dim"
    return "green" if low > 0 else "red" if high < 0 else ""


def _visible(text: str) -> str:
    """Line ends and other control characters as they are written in code."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
