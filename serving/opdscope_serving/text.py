"""What the text of output tokens is and where it stops.

Generator and scorer must agree on it: the one decides when to stop, the other what a completion says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

# A character of UTF-8 has at most four bytes, so a window that starts this many tokens early starts on a whole one.
_CHARACTER_TOKENS = 4
_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class OutputText:
    """The text of output tokens, cut before the first stop string."""

    text: str
    stopped: bool
    """Whether a stop string was found."""


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of tokens: special tokens have none, and spaces stay as they are."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def output_text(
    tokenizer: PreTrainedTokenizerBase, output_token_ids: Sequence[int], stop_strings: Sequence[str] = ()
) -> OutputText:
    """Return the text of a completion's output, forced tokens included, cut before the first stop string."""
    text = decode(tokenizer, output_token_ids)
    starts = [start for stop in stop_strings if (start := text.find(stop)) >= 0]
    return OutputText(text[: min(starts)], stopped=True) if starts else OutputText(text, stopped=False)


class StopWatcher:
    """Tells, token by token, whether outputs contain a stop string by now; one call looks at a short window only.

    It agrees with `output_text` over the whole output. The window of each output is kept by the caller.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._special = frozenset(tokenizer.all_special_ids)
        # Every visible token has at least one byte of text.
        longest = max((len(stop.encode()) for stop in self._stop_strings), default=0)
        self._window = longest + _CHARACTER_TOKENS

    def stopped(self, output_token_ids: Sequence[int]) -> bool:
        """Whether an output contains a stop string."""
        return bool(self._stop_strings) and output_text(self._tokenizer, output_token_ids, self._stop_strings).stopped

    def window(self, output_token_ids: Sequence[int]) -> list[int]:
        """Return the window at the end of an output."""
        return [token_id for token_id in output_token_ids if token_id not in self._special][-self._window :]

    def push(self, window: list[int], token_id: int) -> bool:
        """Move an output's window on by one token, and return whether the token completes a stop string."""
        if not self._stop_strings or token_id in self._special:
            return False
        window.append(token_id)
        del window[: -self._window]
        text = decode(self._tokenizer, window)
        return any(stop in text for stop in self._stop_strings)


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """Return each token's share of the text; joined, they are the text of all tokens.

    A character whose bytes are spread over several tokens belongs to the token that completes it.
    """
    pieces: list[str] = []
    start, done = 0, 0  # `start` is one emission before `done`: decoders treat the first token of a text differently
    for end in range(1, len(token_ids) + 1):
        text = decode(tokenizer, token_ids[start:end])
        unfinished = text.endswith(_UNFINISHED) and end - done < _CHARACTER_TOKENS
        if unfinished and end < len(token_ids):
            pieces.append("")
            continue
        pieces.append(text[len(decode(tokenizer, token_ids[start:done])) :])
        start, done = done, end
    whole = decode(tokenizer, token_ids)
    return pieces if "".join(pieces) == whole else _token_texts_from_whole(tokenizer, token_ids, whole)


def _token_texts_from_whole(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], whole: str) -> list[str]:
    """Split `whole` by decoding every beginning of the tokens: exact for any decoder, but quadratic."""
    bounds = [0]
    for end in range(1, len(token_ids)):
        bounds.append(max(bounds[-1], _common_length(decode(tokenizer, token_ids[:end]), whole)))
    bounds.append(len(whole))
    return [whole[low:high] for low, high in pairwise(bounds)]


def _common_length(text: str, other: str) -> int:
    pairs = zip(text, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
