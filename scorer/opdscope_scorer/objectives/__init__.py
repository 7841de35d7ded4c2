"""Distillation objectives: each gives the direction in which its loss pushes the logits of a node.

Importing this package registers the built-in catalogue.
"""

from opdscope_scorer.objectives import jsd, kl
from opdscope_scorer.objectives.base import (
    BoundObjective,
    InvalidObjectiveError,
    Need,
    Objective,
    ObjectiveInputs,
    Parameter,
    UnknownObjectiveError,
    centred,
    projected,
)
from opdscope_scorer.objectives.parse import parse_objective, parse_objectives
from opdscope_scorer.objectives.registry import known, register

__all__ = [
    "BoundObjective",
    "InvalidObjectiveError",
    "Need",
    "Objective",
    "ObjectiveInputs",
    "Parameter",
    "UnknownObjectiveError",
    "centred",
    "jsd",
    "kl",
    "known",
    "parse_objective",
    "parse_objectives",
    "projected",
    "register",
]
