"""Tells mypy what `@deployment` makes of a class, and what a handle's methods are.

Switched on in its configuration with `plugins = ["remora.mypy_plugin"]`.

mypy ignores what a class decorator returns: a decorated class stays a class for it, which has no
`bind` and no `options`. With this plugin it has both. Other checkers need no help.

`handle.predict` of a `DeploymentHandle[Model]` is, for mypy, the method of that name, with its
arguments and result, unless it yields. Without the plugin it is of any type, and `handle.method(Model.predict)` is
the form that every checker understands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mypy.maptype import map_instance_to_supertype
from mypy.nodes import ARG_STAR, ARG_STAR2, Argument, TypeInfo, Var
from mypy.plugin import AttributeContext, ClassDefContext, Plugin
from mypy.plugins.common import add_attribute_to_class, add_method_to_class
from mypy.typeops import bind_self
from mypy.types import (
    AnyType,
    CallableType,
    Instance,
    Parameters,
    Type,
    TypeOfAny,
    TypeType,
    get_proper_type,
)

_DECORATOR = "remora.deployment.deployment"
#: What users call on a decorated class, and what comes back.
_METHODS = {"bind": "remora.deployment.Application", "options": "remora.deployment.Deployment"}
_HANDLE = "remora.handle.DeploymentHandle."
_TYPED = "remora.calls.typed"
#: What a method that yields returns.
_STREAMS = ("typing.AsyncIterator", "typing.Iterator")
_COROUTINE = "typing.Coroutine"


def _add_methods(context: ClassDefContext) -> bool:
    anything = AnyType(TypeOfAny.explicit)
    arguments = [
        Argument(Var(name, anything), anything, None, kind)
        for name, kind in (("args", ARG_STAR), ("kwargs", ARG_STAR2))
    ]
    itself = Instance(context.cls.info, [AnyType(TypeOfAny.explicit)] * len(context.cls.type_vars))
    for name, returned in _METHODS.items():
        made = context.api.named_type_or_none(returned, [itself])
        if made is None:
            return False  # not analysed yet: mypy comes again
        add_method_to_class(context.api, context.cls, name, arguments, made, is_classmethod=True)
    add_attribute_to_class(
        context.api, context.cls, "func_or_class", TypeType(itself), is_classvar=True
    )
    return True


def _type_of_method(name: str, context: AttributeContext) -> Type:
    """What `handle.<name>` is, by the class that the handle is of."""
    handle = get_proper_type(context.type)
    if not isinstance(handle, Instance) or handle.type.get(name) is not None:
        return context.default_attr_type
    deployed = get_proper_type(handle.args[0]) if handle.args else None
    if not isinstance(deployed, Instance):
        return context.default_attr_type
    symbol = deployed.type.get(name)
    if symbol is None:
        if deployed.type.get("__getattr__") is None:
            context.api.fail(f'"{deployed.type.name}" has no method "{name}"', context.context)
        return AnyType(TypeOfAny.from_error)
    method = get_proper_type(symbol.type)
    if not isinstance(method, CallableType) or method.is_type_obj():
        return context.default_attr_type  # overloaded, a nested class, or an object of its own
    return _typed(context, bind_self(method, deployed)) or context.default_attr_type


def _typed(context: AttributeContext, method: CallableType) -> Type | None:
    result = get_proper_type(method.ret_type)
    if isinstance(result, Instance):
        if any(parent.fullname in _STREAMS for parent in result.type.mro):
            return None  # needs `options(stream=True)`, or `handle.method(...)`, which knows
        for parent in result.type.mro:
            if parent.fullname == _COROUTINE:
                result = get_proper_type(map_instance_to_supertype(result, parent).args[2])
                break
    module = getattr(context.api, "modules", {}).get(_TYPED)
    info = module.names["UnaryMethod"].node if module is not None else None
    if not isinstance(info, TypeInfo):
        return None
    parameters = Parameters(
        method.arg_types, method.arg_kinds, method.arg_names, variables=method.variables
    )
    return Instance(info, [parameters, result])


class _RemoraPlugin(Plugin):
    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        return _add_methods if fullname == _DECORATOR else None

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        if not fullname.startswith(_HANDLE):
            return None
        return partial(_type_of_method, fullname.removeprefix(_HANDLE))


def plugin(version: str) -> type[Plugin]:
    """Return the plugin; called by mypy."""
    del version
    return _RemoraPlugin
