from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from opdscope_scorer.objectives import known
from opdscope_scorer.objectives.docs import document, main, plots
from opdscope_scorer.objectives.plots import curve

DOCS = Path(__file__).parents[3] / "docs"


def test_the_committed_document_is_that_of_the_registry() -> None:
    """Run `python -m opdscope_scorer.objectives.docs docs` after any change of the catalogue."""
    assert (DOCS / "objectives.md").read_text(encoding="utf-8") == document()


def test_the_committed_plots_are_those_of_the_registry() -> None:
    """None is missing, none is left over."""
    committed = {
        str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in DOCS.glob("images/objectives/*")
    }

    assert committed == plots()


def test_every_objective_and_every_plot_is_in_the_document() -> None:
    """Links lead somewhere, and drawings are well-formed."""
    text = document()

    assert all(f"### `{name}`" in text for name in known())
    for path, drawing in plots().items():
        assert f"({path})" in text
        assert ET.fromstring(drawing).tag.endswith("svg")  # noqa: S314 (our own text)


def test_a_curve_is_f_of_the_token() -> None:
    """The plotted pull of forward KL is q/P - 1, and unnormalised top-K needs q > e·P to pull upwards."""
    forward, top_k = curve("forward_kl"), curve("top_k_reverse_kl(k=2, form=unnormalised)")

    assert forward.pulls == pytest.approx([ratio - 1 for ratio in forward.ratios], rel=1e-9, abs=1e-9)
    assert all((pull > 0) == (ratio > 2.718281828) for ratio, pull in zip(top_k.ratios, top_k.pulls, strict=True))


def test_writing_the_document_writes_all_its_files(tmp_path: Path) -> None:
    """The command of the first test's docstring."""
    main(tmp_path)

    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {"objectives.md", *plots()}
