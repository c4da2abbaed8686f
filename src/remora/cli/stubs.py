"""`remora stubs`: a module with a typed handle for each deployment of an application.

For callers that do not import the application: what they get from `get_deployment_handle` is of any
type. The module that is written here wraps such a handle in a class with the deployment's methods,
arguments and results.

What cannot be written down as a type (a class inside a function, or in `__main__`) becomes `Any`.
"""

from __future__ import annotations

import collections.abc
import inspect
import json
import keyword
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from remora.build.graph import walk
from remora.calls.typed import is_stream
from remora.cli.errors import CommandError
from remora.cli.target import load, parse_arguments, parse_target
from remora.deployment import INGRESS_MARK, Application

_ITERATORS = (
    "AsyncGenerator",
    "AsyncIterator",
    "AsyncIterable",
    "Generator",
    "Iterator",
    "Iterable",
)


def write_stubs(
    target: str, arguments: Sequence[str], app_dir: Path, name: str, output: Path | None
) -> None:
    """Write the module for an application.

    Raises:
        CommandError: there is no such application, or the file cannot be written.
    """
    where = parse_target(target)
    application = load(where, parse_arguments(arguments), app_dir)
    text = stubs_of(application, name, str(where))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        if output.suffix not in (".py", ".pyi"):
            output.mkdir(parents=True, exist_ok=True)
            output = output / f"{where.module.replace('.', '_')}_handles.py"
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"The stubs cannot be written to {output}: {error}") from None
    click.echo(f"Wrote {output}")


def stubs_of(application: Application, name: str, origin: str) -> str:
    """Make the module's text."""
    imports: set[str] = set()
    classes = []
    for node, deployment, _, _ in walk(application, name):
        classes.append(_class_of(deployment, node._deployment.func_or_class, name, imports))
    lines = [
        f'"""Typed handles of {origin}. Made by `remora stubs {origin}`; do not edit."""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import TYPE_CHECKING, Any, Protocol, cast",
        "",
        "import remora",
        "",
    ]
    if imports:
        # Annotations alone need them: whoever imports this module does not import the application.
        lines += ["if TYPE_CHECKING:", *(f"    import {module}" for module in sorted(imports)), ""]
    return "\n".join(lines) + "\n".join(f"\n\n{text}" for text in classes) + "\n"


def _class_of(deployment: str, code: Callable[..., Any], app_name: str, imports: set[str]) -> str:
    identifier = re.sub(r"\W", "_", deployment)
    if not identifier.isidentifier() or keyword.iskeyword(identifier):
        identifier = f"_{identifier}"
    protocols = []
    members = []
    methods = list(_methods(code))
    names = {method for method, _, _ in methods}
    for method, function, has_self in methods:
        if method == "remote" and "__call__" in names:
            continue  # as with a handle, `remote` calls the deployment itself
        is_call = method == "__call__"
        protocol = f"_{identifier}_{'call' if is_call else method}"
        stream = is_stream(function)
        signature = _signature(function, has_self, stream, imports)
        if is_call:
            protocols.append(f"class {protocol}(Protocol):\n    def __call__{signature}: ...")
            members.append(
                f"    @property\n    def remote(self) -> {protocol}:\n"
                f"        return cast({protocol}, self.deployment_handle{'.options(stream=True)' * stream}.remote)"
            )
            continue
        protocols.append(
            f"class {protocol}(Protocol):\n    def remote{signature}: ...\n\n"
            f"    def options(self, **options: Any) -> {protocol}: ..."
        )
        options = f"method_name={_text(method)}" + ", stream=True" * stream
        members.append(
            f"    @property\n    def {method}(self) -> {protocol}:\n"
            f"        return cast({protocol}, self.deployment_handle.options({options}))"
        )
    main = (
        f'class {identifier}Handle:\n    """Calls {deployment}."""\n\n'
        f"    def __init__(self, app_name: str = {_text(app_name)}) -> None:\n"
        f"        self.deployment_handle: remora.DeploymentHandle[Any] = remora.get_deployment_handle(\n"
        f"            {_text(deployment)}, app_name\n        )"
    )
    return "\n\n\n".join([*protocols, "\n\n".join([main, *members])])


def _text(value: str) -> str:
    return json.dumps(value)


def _methods(code: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    """The methods that a handle can call: name, function, whether it has a first `self`."""
    if not inspect.isclass(code):
        yield "__call__", code, False
        return
    for name in sorted(dir(code)):
        if name != "__call__" and (name.startswith("_") or keyword.iskeyword(name)):
            continue
        if name == "__call__" and getattr(code, INGRESS_MARK, False):
            continue  # HTTP goes to the app
        found = inspect.getattr_static(code, name, None)
        function = getattr(found, "__func__", found)
        if callable(function) and not inspect.isclass(function):
            yield name, function, not isinstance(found, staticmethod)


def _signature(
    function: Callable[..., Any], has_self: bool, stream: bool, imports: set[str]
) -> str:
    """What comes behind the name: `(self, x: int) -> remora.DeploymentResponse[str]`."""
    returned = "DeploymentResponseGenerator" if stream else "DeploymentResponse"
    try:
        found = inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001 - border: annotations of the user's may name anything
        try:
            found = inspect.signature(function)
        except (TypeError, ValueError):
            return f"(self, *args: Any, **kwargs: Any) -> remora.{returned}[Any]"
    parameters = list(found.parameters.values())
    if has_self and parameters and parameters[0].kind is not parameters[0].VAR_POSITIONAL:
        del parameters[0]
    result = found.return_annotation
    value = _item(result, imports) if stream else _source(result, imports)
    words = ["self"]
    marked = False
    for index, one in enumerate(parameters):
        if one.kind is one.KEYWORD_ONLY and not marked:
            if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                words.append("*")
            marked = True
        star = "*" * ((one.kind is one.VAR_POSITIONAL) + 2 * (one.kind is one.VAR_KEYWORD))
        default = "" if one.default is one.empty else " = ..."
        words.append(f"{star}{one.name}: {_source(one.annotation, imports)}{default}")
        is_last = index + 1 == len(parameters) or parameters[index + 1].kind is not one.kind
        if one.kind is one.POSITIONAL_ONLY and is_last:
            words.append("/")
    return f"({', '.join(words)}) -> remora.{returned}[{value}]"


def _item(annotation: Any, imports: set[str]) -> str:
    """What a generator with this annotation yields."""
    origin = typing.get_origin(annotation)
    args = typing.get_args(annotation)
    is_iterator = getattr(origin, "__name__", "") in _ITERATORS
    return _source(args[0], imports) if is_iterator and args else "Any"


def _source(annotation: Any, imports: set[str]) -> str:
    """An annotation as source text; adds what has to be imported for it."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return "Any"
    if annotation is None or annotation is types.NoneType:
        return "None"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _source(args[0], imports)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_source(arg, imports) for arg in args)
    if origin is typing.Literal:
        imports.add("typing")
        plain = all(isinstance(arg, (str, bytes, int, bool, type(None))) for arg in args)
        return f"typing.Literal[{', '.join(map(repr, args))}]" if plain else "Any"
    if origin is collections.abc.Callable:
        return _callable_source(args, imports)
    if isinstance(origin, type):
        inner = ", ".join("..." if arg is ... else _source(arg, imports) for arg in args)
        return f"{_name(origin, imports)}[{inner}]" if inner else _name(origin, imports)
    if isinstance(annotation, type):
        return _name(annotation, imports)
    return "Any"


def _callable_source(args: tuple[Any, ...], imports: set[str]) -> str:
    imports.add("collections.abc")
    if not args:
        return "collections.abc.Callable[..., Any]"
    parameters = "..."
    if isinstance(args[0], list):
        parameters = f"[{', '.join(_source(arg, imports) for arg in args[0])}]"
    return f"collections.abc.Callable[{parameters}, {_source(args[-1], imports)}]"


def _name(kind: type, imports: set[str]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return "Any"
    imports.add(kind.__module__)
    return f"{kind.__module__}.{kind.__qualname__}"
