"""Contexts: what a teacher sees beyond the question. Each is one small function in a file here."""

from opdscope_scorer.contexts import answer, hint, none, solution
from opdscope_scorer.contexts.base import CONTEXTS, Context

__all__ = ["CONTEXTS", "Context", "answer", "hint", "none", "solution"]
