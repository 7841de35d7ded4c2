import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opdscope_serving.text import OutputText, StopWatcher, output_text, token_texts
from tiny import EOS_ID, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def _bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with one merge, so that most characters beyond ASCII take several tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*letters, "ab", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")  # noqa: S106 - no password


BYTES = _bytes_tokenizer()
# Real text, and ids at random, which spell invalid bytes.
TOKENS = st.one_of(
    st.text(alphabet="ab \nωé日🙂", max_size=20).map(lambda text: BYTES(text)["input_ids"]),
    st.lists(st.integers(0, len(BYTES) - 1), max_size=20),
)


def test_text_is_cut_before_the_first_stop_string() -> None:
    """The earliest occurrence counts, not the order of the stop strings."""
    ids = tiny_tokenizer()("the answer is 7. next")["input_ids"]
    assert OutputText("the answer is 7", stopped=True) == output_text(tiny_tokenizer(), ids, ["next", "."])


def test_text_without_stop_string_is_whole() -> None:
    """Spaces before punctuation stay, special tokens have no text."""
    ids = [*tiny_tokenizer()("it , is . ")["input_ids"], EOS_ID]
    assert OutputText("it , is . ", stopped=False) == output_text(tiny_tokenizer(), ids, ["x"])


@settings(deadline=None, max_examples=200)
@given(tokens=TOKENS, stops=st.lists(st.text(alphabet="ab\né日", min_size=1, max_size=3), min_size=1, max_size=2))
def test_watching_token_by_token_agrees_with_the_whole_text(tokens: list[int], stops: list[str]) -> None:
    """The window finds a stop string at the very token that completes it in the whole text."""
    watcher = StopWatcher(BYTES, stops)
    for start in range(len(tokens) + 1):
        if watcher.stopped(tokens[:start]):
            break
        window = watcher.window(tokens[:start])
        seen = [watcher.push(window, token_id) for token_id in tokens[start:]]
        expected = [output_text(BYTES, tokens[:end], stops).stopped for end in range(start + 1, len(tokens) + 1)]
        first = expected.index(True) if True in expected else len(expected)
        assert expected[: first + 1] == seen[: first + 1]


@settings(deadline=None, max_examples=300)
@given(tokens=TOKENS)
def test_token_texts_join_to_the_text(tokens: list[int]) -> None:
    """Every token has its share, whatever the bytes."""
    texts = token_texts(BYTES, tokens)
    assert len(tokens) == len(texts)
    assert output_text(BYTES, tokens).text == "".join(texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc", ["ab", "c"]),
        ("é", ["", "é"]),
        ("a日b", ["a", "", "", "日", "b"]),
        ("🙂🙂", ["", "", "", "🙂", "", "", "", "🙂"]),
    ],
)
def test_a_character_belongs_to_the_token_that_completes_it(text: str, expected: list[str]) -> None:
    """No token shows a broken character."""
    assert expected == token_texts(BYTES, BYTES(text)["input_ids"])
