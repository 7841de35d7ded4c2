"""The public surface of the package."""

import ast
import subprocess
import sys
from pathlib import Path

import opdscope
import opdscope._errors
import opdscope._types


def test_every_public_name_exists() -> None:
    """Lazy imports find what `__all__` promises, and nothing is promised twice."""
    assert sorted(set(opdscope.__all__)) == list(opdscope.__all__)
    assert [name for name in opdscope.__all__ if getattr(opdscope, name, None) is None] == []
    assert set(opdscope.__all__) <= set(dir(opdscope))


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING are the public names."""
    tree = ast.parse(Path(opdscope.__file__).read_text(encoding="utf-8"))
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opdscope.")
        for alias in node.names
    ]
    assert sorted(imported) == list(opdscope.__all__)


def test_every_error_and_result_type_is_public() -> None:
    """What a user can catch or receive has a public name."""
    for module in (opdscope._errors, opdscope._types):  # noqa: SLF001 - their names are what is tested
        own = {
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
        }
        assert own <= set(opdscope.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module."""
    assert not hasattr(opdscope, "nonsense")


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Trainers import it beside much else; parts come when they are used."""
    code = (
        "import sys, opdscope; print([m for m in ('grpc', 'pydantic', 'yaml', 'pyarrow', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_client_needs_no_torch_and_no_numpy() -> None:
    """Every module of the client can be imported without them."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "import opdscope, opdscope.cli\n"
        "[getattr(opdscope, name) for name in opdscope.__all__]\n"
        "print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
