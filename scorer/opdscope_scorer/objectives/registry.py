"""The catalogue of objectives: those of this package and those of installed plug-ins."""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module, metadata

from torch import Tensor

from opdscope_scorer.objectives.base import InvalidObjectiveError, Objective, Parameter, UnknownObjectiveError
from opdscope_scorer.objectives.inputs import Need
from opdscope_scorer.objectives.presets import PRESETS

# A package adds objectives by naming, under this group, a module that registers them when it is imported.
ENTRY_POINT_GROUP = "opdscope.objectives"

# The modules of the built-in catalogue, each of which is a section of it.
FAMILIES = (
    "kl",
    "jsd",
    "skew",
    "divergences",
    "top_k",
    "temperature",
    "sampled",
    "estimators",
    "minillm",
    "policy_gradient",
)

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
        if name in _catalogue or name in PRESETS:
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
    """All objectives by name: the families in the order of the catalogue, then plug-ins."""
    _load()
    return dict(_catalogue)


def get(name: str) -> Objective:
    """The objective of this name.

    Raises:
        UnknownObjectiveError: There is none.
    """
    catalogue = known()
    if name not in catalogue:
        names = ", ".join(sorted(catalogue))
        presets = ", ".join(sorted(PRESETS))
        raise UnknownObjectiveError(f"there is no objective {name!r}; known: {names}; presets: {presets}")
    return catalogue[name]


@cache
def _load() -> None:
    """Imports the families and the modules that installed packages name; an error in one of them is not hidden."""
    for family in FAMILIES:
        import_module(f"opdscope_scorer.objectives.{family}")
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:
            error.add_note(f"while loading the objectives {entry.name!r} = {entry.value!r}")
            raise
