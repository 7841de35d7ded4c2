"""What a verifier is."""

from collections.abc import Callable
from dataclasses import dataclass

from opdscope_scorer.registry import Registry


@dataclass(frozen=True)
class Verifier:
    """A way to tell whether an output answers its question."""

    name: str
    description: str
    check: Callable[[str, str], bool]
    """Takes the output's text and the right answer."""


VERIFIERS: Registry[Verifier] = Registry("verifier")


def verifier(check: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """Register the decorated function under its own name."""
    name = check.__name__
    VERIFIERS.add(name, Verifier(name, (check.__doc__ or "").strip(), check))
    return check
