"""Prompts, contexts and verifiers."""

import pytest
from opdscope_scorer.contexts import CONTEXTS
from opdscope_scorer.prompts import PromptTemplate, TemplateError
from opdscope_scorer.questions import Question
from opdscope_scorer.registry import UnknownNameError
from opdscope_scorer.verifiers import VERIFIERS

QUESTION = Question("q", "What is 3 + 4?", "7", solution="3 + 4 = 7.", hint="Add.")


@pytest.mark.parametrize(
    ("context", "text"),
    [("none", ""), ("answer", "The correct answer is 7."), ("solution", "3 + 4 = 7."), ("hint", "Add.")],
)
def test_contexts_show_what_they_are_named_after(context: str, text: str) -> None:
    """Each context's text is fixed: results depend on it."""
    assert CONTEXTS.get(context).build(QUESTION) == text


def test_contexts_name_what_a_question_lacks() -> None:
    """A context that needs what is not there can say so."""
    bare = Question("q", "What is 3 + 4?", "7")
    assert {name: CONTEXTS.get(name).missing(bare) for name in CONTEXTS} == {
        "answer": [],
        "hint": ["hint"],
        "none": [],
        "solution": ["solution"],
    }


@pytest.mark.parametrize("registry", [CONTEXTS, VERIFIERS])
def test_unknown_names_are_refused_with_those_that_are_known(registry: object) -> None:
    """The message tells what one may write."""
    with pytest.raises(UnknownNameError, match=r"unknown .* 'x'; known: ") as raised:
        registry.get("x")
    assert all(name in str(raised.value) for name in registry)


def test_templates_are_rendered_to_the_letter() -> None:
    """White space at the end decides what a model says next, so it stays."""
    template = PromptTemplate("{% if privileged %}({{ privileged }}) {% endif %}Q: {{ question }}\nA:\n")
    assert template.render("Why?") == "Q: Why?\nA:\n"
    assert template.render("Why?", "Because.") == "(Because.) Q: Why?\nA:\n"
    assert template.shows_privileged


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("A:", "does not contain"),
        ("{{ question }} {{ answer }}", "names answer; known are question and privileged"),
        ("{{ question ", "line 1"),
        ("{{ question }}\n{% if %}", "line 2"),
    ],
)
def test_bad_templates_are_refused(source: str, message: str) -> None:
    """The message names the line or the variable."""
    with pytest.raises(TemplateError, match=message):
        PromptTemplate(source)


def test_templates_cannot_reach_python() -> None:
    """They come over the network."""
    template = PromptTemplate("{{ question.__class__.__mro__ }}")
    with pytest.raises(TemplateError, match="unsafe"):
        template.render("Why?")


@pytest.mark.parametrize(
    ("output", "answer", "accepted"),
    [
        ("He has 3 + 4 = 7 apples. The answer is 7.", "7", True),
        ("7 then 8", "7", False),
        ("The answer is 1,200.", "1200", True),
        ("The answer is 12.50", "12.5", True),
        ("The answer is -3.", "-3", True),
        ("10-3", "3", True),
        ("(5)-3", "3", True),
        ("costs 5.", "5", True),
        ("There are none.", "7", False),
        ("1,2", "2", True),
        ("", "0", False),
    ],
)
def test_number_compares_the_last_number(output: str, answer: str, *, accepted: bool) -> None:
    """As numbers, not as text."""
    assert VERIFIERS.get("number").check(output, answer) is accepted


@pytest.mark.parametrize(("output", "accepted"), [(" yes\n", True), ("yes.", False), ("Yes", False)])
def test_exact_ignores_white_space_around(output: str, *, accepted: bool) -> None:
    """And nothing else."""
    assert VERIFIERS.get("exact").check(output, "yes") is accepted
