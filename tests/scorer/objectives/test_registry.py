import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from opdscope_scorer import objectives
from opdscope_scorer.objectives import PRESETS, InvalidObjectiveError, known, parse_objective, register

PLUGIN = """
from opdscope_scorer.objectives import ObjectiveInputs, Parameter, centred, register

@register(
    name="tempered_reverse_kl",
    family="mine",
    formula="f = s log(q/P)",
    loss="s KL(P‖q)",
    source="a test",
    parameters=(Parameter("s", 2.0, "scale", low=0),),
)
def tempered_reverse_kl(x: ObjectiveInputs, *, s: float):
    return centred(x, s * x.log_ratio_NV)
"""
SHOW = """
from opdscope_scorer.objectives import known, parse_objective
print(parse_objective("tempered_reverse_kl").canonical, len(known()))
"""


def run_with_plugin(folder: Path, module: str, code: str) -> subprocess.CompletedProcess[str]:
    """Python with an installed distribution that registers the module."""
    info = folder / "my_objectives-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-objectives\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[opdscope.objectives]\nmine = my_objectives\n")
    (folder / "my_objectives.py").write_text(module)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_installed_package_adds_an_objective(tmp_path: Path) -> None:
    """A module named under the entry point group is all it takes: it is known, and read from expressions."""
    result = run_with_plugin(tmp_path, PLUGIN, SHOW)

    assert result.stdout == f"tempered_reverse_kl(s=2) {len(known()) + 1}\n", result.stderr


def test_a_broken_package_is_named(tmp_path: Path) -> None:
    """Its error is not swallowed, and says which entry point it comes from."""
    result = run_with_plugin(tmp_path, "raise OSError('no such file')", SHOW)

    assert result.returncode == 1
    assert "OSError: no such file" in result.stderr
    assert "while loading the objectives 'mine' = 'my_objectives'" in result.stderr


@pytest.mark.parametrize("name", ["reverse_kl", "trl_gkd"])
def test_a_name_is_taken_once(name: str) -> None:
    """Neither objectives nor presets are replaced silently."""
    known()

    with pytest.raises(InvalidObjectiveError, match=name):
        register(name=name, family="", formula="", loss="", source="")(lambda x: x)


def test_every_entry_of_the_catalogue_is_documented() -> None:
    """Formula, loss and source are there, and parameters say what they mean and have a default that is allowed."""
    for name, objective in known().items():
        assert all((objective.formula, objective.loss, objective.source)), name
        assert all(one.meaning for one in objective.parameters), name
        assert parse_objective(name).canonical.startswith(name)


def test_presets_say_where_they_were_read() -> None:
    """A release or a commit, and a file."""
    for name, preset in PRESETS.items():
        assert parse_objective(name) == parse_objective(preset.expression)
        assert "/" in preset.release.split()[0], name
        assert any(ending in preset.release for ending in (".py", ".yaml", ".sh")), name
        with pytest.raises(InvalidObjectiveError, match="takes no arguments"):
            parse_objective(f"{name}(beta=0.1)")


def test_what_the_package_exports() -> None:
    """Method authors import from one place."""
    module = importlib.import_module("opdscope_scorer.objectives")

    assert sorted(objectives.__all__, key=str.lower) == sorted(set(objectives.__all__), key=str.lower)
    assert all(hasattr(module, name) for name in objectives.__all__)
