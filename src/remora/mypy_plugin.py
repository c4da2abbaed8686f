"""Tells mypy what `@deployment` makes of a class.

Switched on in its configuration with `plugins = ["remora.mypy_plugin"]`.

mypy ignores what a class decorator returns: a decorated class stays a class for it, which has no
`bind` and no `options`. With this plugin it has both. Other checkers need no help.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.nodes import ARG_STAR, ARG_STAR2, Argument, Var
from mypy.plugin import ClassDefContext, Plugin
from mypy.plugins.common import add_method_to_class
from mypy.types import AnyType, TypeOfAny

_DECORATOR = "remora.deployment.deployment"
#: What users call on a decorated class, and what comes back.
_METHODS = {"bind": "remora.deployment.Application", "options": "remora.deployment.Deployment"}


def _add_methods(context: ClassDefContext) -> bool:
    anything = AnyType(TypeOfAny.explicit)
    arguments = [
        Argument(Var(name, anything), anything, None, kind)
        for name, kind in (("args", ARG_STAR), ("kwargs", ARG_STAR2))
    ]
    for name, returned in _METHODS.items():
        made = context.api.named_type_or_none(returned)
        if made is None:
            return False  # not analysed yet: mypy comes again
        add_method_to_class(context.api, context.cls, name, arguments, made, is_classmethod=True)
    return True


class _RemoraPlugin(Plugin):
    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        return _add_methods if fullname == _DECORATOR else None


def plugin(version: str) -> type[Plugin]:
    """Return the plugin; called by mypy."""
    del version
    return _RemoraPlugin
