"""YAML as people write and read it."""

from pathlib import Path
from typing import Any

import yaml

from opdscope._errors import RunFileError
from opdscope._validation import shown


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where PyYAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                problem = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.value[index][0].start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as lines."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text.strip("\n") else '"' if "\n" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping.

    Raises:
        RunFileError: naming file and line.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # noqa: S506 - derived from SafeLoader
    except OSError as error:
        raise RunFileError(f"cannot read the run file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunFileError(f"{path}: is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RunFileError(f"{path}: {line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise RunFileError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise RunFileError(f"{path}: must be a mapping of settings, got {shown(data)}")
    return data


def yaml_text(data: dict[str, Any]) -> str:
    """The mapping as YAML, in its own order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
