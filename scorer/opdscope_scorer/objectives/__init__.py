"""Distillation objectives: each gives the direction in which its loss pushes the logits of a node."""

from opdscope_scorer.objectives.base import (
    BoundObjective,
    InvalidObjectiveError,
    Objective,
    Parameter,
    UnknownObjectiveError,
)
from opdscope_scorer.objectives.crossfit import CrossFitted, cross_fitted
from opdscope_scorer.objectives.evaluation import Evaluation, evaluate
from opdscope_scorer.objectives.inputs import Need, ObjectiveInputs, centred, projected
from opdscope_scorer.objectives.parse import parse_objective, parse_objectives
from opdscope_scorer.objectives.presets import PRESETS, Preset
from opdscope_scorer.objectives.registry import known, register

__all__ = [
    "PRESETS",
    "BoundObjective",
    "CrossFitted",
    "Evaluation",
    "InvalidObjectiveError",
    "Need",
    "Objective",
    "ObjectiveInputs",
    "Parameter",
    "Preset",
    "UnknownObjectiveError",
    "centred",
    "cross_fitted",
    "evaluate",
    "known",
    "parse_objective",
    "parse_objectives",
    "projected",
    "register",
]
