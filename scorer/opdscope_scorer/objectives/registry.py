"""The catalogue of objectives: those of this package and those of installed plug-ins."""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata

from torch import Tensor

from opdscope_scorer.objectives.base import InvalidObjectiveError, Need, Objective, Parameter, UnknownObjectiveError

# A package adds objectives by naming, under this group, a module that registers them when it is imported.
ENTRY_POINT_GROUP = "opdscope.objectives"

_catalogue: dict[str, Objective] = {}


def register(
    *,
    name: str,
    family: str,
    formula: str,
    loss: str,
    source: str,
    parameters: Iterable[Parameter] = (),
    needs: Iterable[Need] = (),
    variance: Callable[..., Tensor] | None = None,
    note: str = "",
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorates a function of `ObjectiveInputs` and the parameters, which gives d, as an objective.

    Raises:
        InvalidObjectiveError: The name is taken.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if name in _catalogue:
            raise InvalidObjectiveError(f"there is already an objective {name}")
        _catalogue[name] = Objective(
            name=name,
            family=family,
            formula=formula,
            loss=loss,
            source=source,
            function=function,
            parameters=tuple(parameters),
            needs=frozenset(needs),
            variance=variance,
            note=note,
        )
        return function

    return decorate


def known() -> dict[str, Objective]:
    """All objectives by name, plug-ins included, in the order in which they were registered."""
    load_plugins()
    return dict(_catalogue)


def get(name: str) -> Objective:
    """The objective of this name.

    Raises:
        UnknownObjectiveError: There is none.
    """
    catalogue = known()
    if name not in catalogue:
        raise UnknownObjectiveError(f"there is no objective {name!r}; known: {', '.join(sorted(catalogue))}")
    return catalogue[name]


@cache
def load_plugins() -> None:
    """Imports the modules that installed packages name; an error in one of them is not hidden."""
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:
            error.add_note(f"while loading the objectives {entry.name!r} = {entry.value!r}")
            raise
