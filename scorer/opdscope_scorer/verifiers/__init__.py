"""Verifiers: what counts as a success. Each is one small function in a file here."""

from opdscope_scorer.verifiers import exact, number
from opdscope_scorer.verifiers.base import VERIFIERS, Verifier

__all__ = ["VERIFIERS", "Verifier", "exact", "number"]
