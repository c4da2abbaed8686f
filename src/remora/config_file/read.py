"""Reads a config file: YAML in, a checked config out, and every problem with its line.

Rules: knows YAML and no key; what may stand in a config is `declaration.py`'s.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from remora.config_file import declaration
from remora.config_file.declaration import MAX_CONFIG_BYTES, DeployConfig
from remora.config_file.documents import SecondConfig, joined
from remora.config_file.problem import Path as Steps
from remora.config_file.problem import Problem
from remora.errors import ConfigFileError

#: Aliases can make a small file stand for a huge value.
_MAX_VALUES = 200_000
_MAP = "tag:yaml.org,2002:map"
_SEQ = "tag:yaml.org,2002:seq"
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"


#: The one in C reads ten times as fast; it is not there in every build of PyYAML.
_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[valid-type, misc]
    """YAML as JSON can hold it: a date is the text that was written."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Reader:
    """Turns the nodes of one file into values, and remembers where each of them is."""

    def __init__(self, name: str, loader: _Loader) -> None:
        self._name = name
        self._loader = loader
        self._num_values = 0
        self.lines: dict[Steps, int] = {}

    def all_documents(self) -> object:
        """Return what the documents of the file are together; None: they are empty.

        Raises:
            ConfigFileError: as `value`; or they are no config together.
        """
        values: list[Any] = []
        lines: list[dict[Steps, int]] = []
        while self._loader.check_node():
            self.lines = {}
            value = self.value(self._loader.get_node())
            if value is not None:
                values.append(value)
                lines.append(self.lines)
        if not values:
            return None
        try:
            whole, places = joined(values)
        except SecondConfig as second:
            line = lines[second.index][()]
            said = "a file has one document with the keys of a config; each other one is an application"
            what = f"{self._name}:{line}: {said} and has the key 'import_path'"
            raise ConfigFileError([what]) from None
        self.lines = {
            (*place, *path): line
            for place, found in zip(places, lines, strict=True)
            for path, line in found.items()
        }
        return whole

    def value(self, node: yaml.Node, path: Steps = ()) -> Any:
        """The value of a node.

        Raises:
            ConfigFileError: JSON has no such value, or a key comes twice.
        """
        self._num_values += 1
        if self._num_values > _MAX_VALUES or len(path) > 100:
            raise self._error(node, "is too large: it stands for more values than any config has")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        found = self._loader.construct_object(node) if isinstance(node, yaml.ScalarNode) else node
        if isinstance(found, float) and not math.isfinite(found):
            raise self._error(node, f"{node.value} is no number that a config can hold")
        if not isinstance(found, str | int | float | None):
            raise self._error(node, f"values with the tag {node.tag} cannot stand in a config")
        return found

    def _mapping(self, node: yaml.MappingNode, path: Steps) -> dict[str, Any]:
        made: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                several = isinstance(value_node, yaml.SequenceNode)
                for one in value_node.value if several else [value_node]:
                    if not isinstance(one, yaml.MappingNode):
                        raise self._error(one, "'<<' takes a mapping")
                    merged = {**self._mapping(one, path), **merged}
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or key_node.tag == _NULL:
                raise self._error(key_node, "a key must be text")
            if key in made:
                raise self._error(key_node, f"the key {key!r} comes twice")
            made[key] = self.value(value_node, (*path, key))
            self.lines[(*path, key)] = key_node.start_mark.line + 1
        return {**merged, **made}

    def _error(self, node: yaml.Node, message: str) -> ConfigFileError:
        return ConfigFileError([f"{self._name}:{node.start_mark.line + 1}: {message}"])

    def line(self, problem: Problem) -> int:
        """Return the line that a problem is in."""
        path = problem.path
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def tell(self, problem: Problem) -> str:
        """Say where a problem is, as compilers do."""
        return f"{self._name}:{self.line(problem)}: {problem}"


def read(text: str, name: str, *, several: bool = False) -> tuple[Any, _Reader]:
    """Read YAML, or JSON, which is YAML too.

    Args:
        text: what the file holds.
        name: of the file, for messages.
        several: there may be several documents, which are one config together.

    Raises:
        ConfigFileError: it is neither.
    """
    loader = _Loader(text)
    reader = _Reader(name, loader)
    try:
        if several:
            value = reader.all_documents()
        else:
            node = loader.get_single_node()
            value = None if node is None else reader.value(node)
    except ConfigFileError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise ConfigFileError([f"{name}:{line}: this is not YAML: {error.problem}"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigFileError([f"{name}:1: this is not YAML: {error}"]) from None
    finally:
        loader.dispose()
    if value is None:
        raise ConfigFileError([f"{name}:1: the file is empty; a config has the key 'applications'"])
    return value, reader


def load(path: Path) -> DeployConfig:
    """Read and check a config file.

    Raises:
        ConfigFileError: it cannot be read, or something in it is wrong; names file and lines.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigFileError(
                [f"{path}: {path.stat().st_size} bytes are no config; {MAX_CONFIG_BYTES} may be"]
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigFileError([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigFileError([f"{path}: this is not text in UTF-8: {error.reason}"]) from None
    value, reader = read(text, str(path), several=True)
    return declaration.parse(value, reader.tell, reader.line)
