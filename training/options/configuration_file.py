"""The YAML or JSON file of a run: mace's options, a ``phi:`` section, and where each key stands."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from phi_equivariant.errors import InputError

#: Options that may be lists in a file, which mace takes as text.
LISTS = ("train_file", "valid_file", "test_file", "atomic_numbers")


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """What a file says.

    options : {option: value}; section : what stands under ``phi:``; has_section : whether there is one, if only null;
    lines, section_lines : {key: where it stands}, for messages.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    section: Any = None
    has_section: bool = False
    lines: dict[str, str] = dataclasses.field(default_factory=dict)
    section_lines: dict[str, str] = dataclasses.field(default_factory=dict)


def read_configuration(path: str | Path) -> Configuration:
    """The file's options and its ``phi:`` section with the lines where keys stand.

    InputError if the file is missing, is not YAML (with line and column) or is not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--config: there is no file {path}.")
    try:
        text = path.read_text()
        content = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        place = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        raise InputError(f"--config: {path} is not valid YAML{place}: {getattr(error, 'problem', error)}.") from error
    if content is None:
        return Configuration()
    if not isinstance(content, dict) or not isinstance(root, yaml.MappingNode):
        raise InputError(f"--config: {path} holds a {type(content).__name__}; expected 'option: value' lines.")
    _refuse_twice(root, path)
    section_lines: dict[str, str] = {}
    for key, value in root.value:
        if key.value not in content and key.tag != "tag:yaml.org,2002:merge":
            raise InputError(
                f"--config: {key.value} in line {key.start_mark.line + 1} of {path} is not a name of an option, but a "
                "number, a date or the like."
            )
        if key.value == "phi" and isinstance(value, yaml.MappingNode):
            section_lines = _lines(value, path)
    if "config" in content:
        raise InputError(f"--config: {path} names another configuration, which would not be read. Give one file.")
    for name in LISTS:  # mace's parser takes text only
        if isinstance(content.get(name), list):
            content[name] = str(content[name])
    has_section = "phi" in content
    return Configuration(content, content.pop("phi", None), has_section, _lines(root, path), section_lines)


def _refuse_twice(node: yaml.Node, path: Path) -> None:
    """YAML keeps the last of two equal keys in silence."""
    inner = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, line) != line:
                lines = f"in lines {seen[key.value]} and {line}"
                raise InputError(f"--config: {key.value} is given twice in {path}, {lines}. Take one out.")
        inner = [value for _, value in node.value]
    for value in inner:
        _refuse_twice(value, path)


def _lines(mapping: yaml.MappingNode, path: Path) -> dict[str, str]:
    """{key: where it stands}, for messages."""
    return {key.value: f" (line {key.start_mark.line + 1} of {path})" for key, _ in mapping.value}
