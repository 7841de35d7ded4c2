"""What a run may name, as a message."""

import inspect
import math

from opdscope.v1 import scorer_pb2

from opdscope_scorer.contexts import CONTEXTS
from opdscope_scorer.objectives import Objective, Parameter, known
from opdscope_scorer.selection import SELECTORS
from opdscope_scorer.verifiers import VERIFIERS


def capabilities() -> scorer_pb2.ListCapabilitiesResponse:
    """Return everything that is registered, plug-ins included."""
    contexts = [CONTEXTS.get(name) for name in CONTEXTS]
    verifiers = [VERIFIERS.get(name) for name in VERIFIERS]
    return scorer_pb2.ListCapabilitiesResponse(
        objectives=[_objective(objective) for objective in known().values()],
        contexts=[scorer_pb2.NamedInfo(name=c.name, description=c.description, needs=c.needs) for c in contexts],
        verifiers=[scorer_pb2.NamedInfo(name=v.name, description=v.description) for v in verifiers],
        node_selectors=[
            scorer_pb2.NamedInfo(name=name, description=inspect.getdoc(SELECTORS.get(name))) for name in SELECTORS
        ],
    )


def _objective(objective: Objective) -> scorer_pb2.ObjectiveInfo:
    return scorer_pb2.ObjectiveInfo(
        name=objective.name,
        family=objective.family,
        formula=objective.formula,
        loss=objective.loss,
        source=objective.source,
        needs=sorted(objective.needs),
        parameters=[_parameter(parameter) for parameter in objective.parameters],
        note=objective.note,
    )


def _parameter(parameter: Parameter) -> scorer_pb2.ObjectiveParameter:
    return scorer_pb2.ObjectiveParameter(
        name=parameter.name,
        default_value="" if parameter.default is None else str(parameter.default),
        meaning=parameter.meaning,
        accepted=_accepted(parameter),
    )


def _accepted(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(parameter.choices)
    kind = "whole number" if isinstance(parameter.default, int) else "number"
    low, high = parameter.low, parameter.high
    if math.isinf(low) and math.isinf(high):
        return kind
    if math.isinf(high):
        return f"{kind} from {low:g}"
    return f"{kind} up to {high:g}" if math.isinf(low) else f"{kind} from {low:g} to {high:g}"
