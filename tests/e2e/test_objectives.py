"""`opdscope objectives` prints the catalogue of a real scorer."""

import json
import subprocess
import sys

import pytest
import services
from opdscope import Client
from opdscope_scorer.objectives import known


def _objectives(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "opdscope", "objectives", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.usefixtures("client")
def test_every_objective_is_printed_with_what_it_is(scorer: services.Server) -> None:
    """Name, formula, needs and source of each."""
    result = _objectives("--scorer", scorer.address)
    assert result.returncode == 0, result.stderr
    flat = " ".join(result.stdout.split())
    for objective in known().values():
        assert objective.name in result.stdout
        for text in (objective.formula, objective.source, *objective.needs):
            assert " ".join(text.split()) in flat


def test_machines_get_one_object_a_line(scorer: services.Server) -> None:
    """With the same fields."""
    result = _objectives("gkd_jsd", "minillm", "--json", "--scorer", scorer.address)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["name"] for row in rows] == ["gkd_jsd", "minillm"]
    assert rows[0]["parameters"][0]["name"] == "beta"
    assert rows[1]["needs"] == ["teacher_returns"]


def test_unknown_names_are_refused_with_those_that_are_known(scorer: services.Server) -> None:
    """Exit code 1."""
    result = _objectives("gdk", "--scorer", scorer.address)
    assert result.returncode == 1
    assert "unknown objective 'gdk'; known: " in result.stderr


def test_capabilities_name_contexts_verifiers_and_selectors(client: Client) -> None:
    """Each with a description."""
    found = client.list_capabilities()
    assert [context.name for context in found.contexts] == ["answer", "hint", "none", "solution"]
    assert [verifier.name for verifier in found.verifiers] == ["exact", "number"]
    assert [selector.name for selector in found.node_selectors] == ["all", "entropy", "explicit"]
    assert all(
        entry.description for group in (found.contexts, found.verifiers, found.node_selectors) for entry in group
    )
