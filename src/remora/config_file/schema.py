"""The JSON Schema of a config file, for editors and other tools.

Rules: pure; derived from the lists of keys in `declaration.py` and from the types in `options/`.
"""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from remora.config_file.declaration import APPLICATION_KEYS, DEPLOYMENT_KEYS, KEYS, Key
from remora.options.deployment import DeploymentOptions

_PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null"}


def json_schema() -> dict[str, Any]:
    """Describe a config, as JSON Schema. Pure."""
    hints = typing.get_type_hints(DeploymentOptions)
    made = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Remora config",
        **_object({name: _nullable(key) for name, key in KEYS.items()}),
        "$defs": {
            "application": _object(APPLICATION_KEYS),
            "deployment": {
                "type": "object",
                "properties": {name: schema_of(hints[name]) for name in DEPLOYMENT_KEYS},
                "required": ["name"],
                "additionalProperties": False,
            },
        },
    }
    # The caller's to change.
    return copy.deepcopy(made)


def _nullable(key: Key) -> Key:
    """At the top, null is the same as left out."""
    if key.required or key.later:
        return key
    shape = struct_schema(key.schema) if isinstance(key.schema, type) else key.schema
    return replace(key, schema={"anyOf": [shape, {"type": "null"}]})


def _object(keys: Mapping[str, Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _key(key) for name, key in keys.items()},
        "required": [name for name, key in keys.items() if key.required],
        "additionalProperties": False,
    }


def _key(key: Key) -> dict[str, Any]:
    if key.later:
        return {"description": f"{key.text} Not supported yet.", "enum": [None, False, {}]}
    shape = struct_schema(key.schema) if isinstance(key.schema, type) else key.schema
    return {"description": key.text, **shape}


def schema_of(kind: Any) -> dict[str, Any]:
    """Describe what can be written in a file for an option of this type. Pure."""
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        # A struct and the dict that stands for it are the same in a file.
        structs = [one for one in args if _is_struct(one)]
        shown = [one for one in args if not structs or typing.get_origin(one) is not dict]
        return {"anyOf": [schema_of(one) for one in shown]}
    if origin is list:
        return {"type": "array", "items": schema_of(args[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(args[1])}
    if origin is typing.Literal:
        return {"enum": list(args)}
    return struct_schema(kind) if _is_struct(kind) else {}


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def struct_schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Describe an option that has keys of its own. Pure."""
    hints = typing.get_type_hints(kind)
    properties = {}
    for field in msgspec.structs.fields(kind):
        default = field.default
        shown = schema_of(hints[field.name])
        if isinstance(default, (int, float, str, bool)):
            shown = {**shown, "default": default}
        properties[field.encode_name] = shown
    return {"type": "object", "properties": properties, "additionalProperties": False}
