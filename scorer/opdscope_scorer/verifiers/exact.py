"""The verifier `exact`."""

from opdscope_scorer.verifiers.base import verifier


@verifier
def exact(output: str, answer: str) -> bool:
    """Accepts an output that is the answer, but for white space around it."""
    return output.strip() == answer.strip()
