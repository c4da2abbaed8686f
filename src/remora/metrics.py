"""Metrics of your own code: `Counter`, `Gauge` and `Histogram`.

They appear on `/-/metrics` beside those of Remora, with the labels `application`, `deployment` and
`replica`, which nobody has to give. In a program that is no replica they count for themselves, and
nobody is shown them.
"""

from __future__ import annotations

import math
import re
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Self

from remora.context import replica_context_or_none
from remora.observe.user_metrics import OUTSIDE, Declaration, Rows, UserMetrics
from remora.request_context import current

__all__ = ["Counter", "Gauge", "Histogram"]

#: What Remora says of each row.
_RESERVED = ("application", "deployment", "replica")
#: Filled from the request that is being worked on.
_ROUTE = "route"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_TAG = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_MAX_BOUNDARIES = 200


class _Metric:
    """What counters, gauges and histograms share."""

    _kind: str
    #: Says nothing if it is None: a name that Prometheus cannot have.
    _declaration: Declaration | None

    def __init__(
        self,
        name: Any,
        description: Any,
        tag_keys: Any,
        bounds: tuple[float, ...] = (),
    ) -> None:
        if not isinstance(name, str) or not isinstance(description, str):
            raise TypeError(f"name and description must be str, not {name!r} and {description!r}")
        if not name:
            raise ValueError("A metric needs a name that is not empty.")
        self._name = name
        self._description = description
        self._tag_keys = _checked_tag_keys(tag_keys, self._kind)
        self._wants_route = _ROUTE in self._tag_keys
        self._default_tags: dict[str, str] = {}
        #: The key of a row without further tags; None: there is none, or it changes.
        self._plain_key: tuple[str, ...] | None = None
        self._find_plain_key()
        self._declaration = None
        #: Where it was written last. Read and replaced as one: threads may work for two replicas.
        self._attached: tuple[UserMetrics, Rows] | None = None
        if _NAME.fullmatch(name) is None:
            warnings.warn(
                f"{name!r} cannot be the name of a metric, and nothing is counted under it: it may "
                "have letters, digits, '_' and ':' and does not begin with a digit.",
                UserWarning,
                stacklevel=3,
            )
            return
        plain = name.removesuffix("_total") if self._kind == "counter" else name
        self._declaration = Declaration(
            plain or name, self._kind, self._tag_keys, bounds, description
        )
        if replica_context_or_none() is not None:
            # In a constructor it is better to hear of it than in a request.
            self._rows()

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys and default tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": dict(self._default_tags),
        }

    def set_default_tags(self, default_tags: Mapping[str, str]) -> Self:
        """Say the values of tags that are not given when something is counted.

        They take the place of those that were set before. Returns the metric itself.

        Args:
            default_tags: values by the keys of tags.

        Raises:
            ValueError: it has no such tag.
            TypeError: a value is no text.
        """
        for key, value in default_tags.items():
            if key in _RESERVED:
                raise ValueError(_reserved(key))
            if key not in self._tag_keys:
                raise ValueError(self._unknown(key))
            if not isinstance(value, str):
                raise TypeError(f"The value of tag {key!r} must be a str, not {value!r}.")
        self._default_tags = dict(default_tags)
        self._find_plain_key()
        return self

    def _find_plain_key(self) -> None:
        known = self._default_tags
        complete = not self._wants_route and known.keys() >= set(self._tag_keys)
        self._plain_key = tuple(known[key] for key in self._tag_keys) if complete else None

    def _rows(self) -> Rows:
        """Where the replica that runs this code keeps this metric.

        Raises:
            ValueError: it has another metric of this name.
        """
        context = replica_context_or_none()
        store = OUTSIDE if context is None else context.user_metrics
        attached = self._attached
        if attached is not None and attached[0] is store:
            return attached[1]
        assert self._declaration is not None
        try:
            rows = store.declared(self._declaration)
        except ValueError:
            if store is not OUTSIDE:
                raise
            # A cell of a notebook was changed and run again.
            store.forget(self._declaration.name)
            rows = store.declared(self._declaration)
        self._attached = (store, rows)
        return rows

    def _key(self, tags: Mapping[str, str] | None) -> tuple[str, ...]:
        """Values of all tags, in order.

        Raises:
            ValueError: a tag has no value, or there is no such tag.
            TypeError: a value is no text.
        """
        if not tags and self._plain_key is not None:
            return self._plain_key
        if tags and len(tags) == len(self._tag_keys):
            key = tuple([tags.get(name) for name in self._tag_keys])
            for value in key:
                if type(value) is not str:
                    break
            else:
                return key  # type: ignore[return-value]
        values = dict(self._default_tags)
        if self._wants_route:
            request = current.get()
            values[_ROUTE] = "" if request is None else request.route
        values.update(tags or {})
        if values.keys() != set(self._tag_keys):
            self._refuse(values)
        for name, value in values.items():
            if not isinstance(value, str):
                raise TypeError(f"The value of tag {name!r} must be a str, not {value!r}.")
        # A text of another class, such as a `ReplicaID`, is none that travels.
        return tuple([str.__str__(values[name]) for name in self._tag_keys])

    def _refuse(self, values: Mapping[str, str]) -> None:
        for key in values:
            if key not in self._tag_keys:
                raise ValueError(self._unknown(key))
        missing = ", ".join(key for key in self._tag_keys if key not in values)
        raise ValueError(
            f"Missing value for tag key(s) of metric {self._name!r}: {missing}. Give it in tags, or "
            "once with set_default_tags."
        )

    def _unknown(self, key: str) -> str:
        there = ", ".join(self._tag_keys) or "it has none"
        return f"Unrecognized tag key {key!r} of metric {self._name!r}; tag_keys: {there}."

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self._arguments(), dict(self._default_tags))

    def _arguments(self) -> tuple[Any, ...]:
        return self._name, self._description, self._tag_keys

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"


class Counter(_Metric):
    """A number that only grows.

    Args:
        name: for Prometheus; it adds `_total`.
        description: what it means, for people.
        tag_keys: names of tags: a tuple. `route`, if it is among them, is filled from the request.

    Raises:
        TypeError: `tag_keys` is no tuple of texts.
        ValueError: no name, a tag that Remora adds itself, or another metric of that name.
    """

    _kind = "counter"

    def __init__(
        self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(name, description, tag_keys)

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        """Add to it.

        Args:
            value: > 0.
            tags: values of tags, before those that `set_default_tags` gave.

        Raises:
            ValueError: `value` is not above 0 or not finite; a tag is missing or unknown.
            TypeError: `value` is no number, or a tag's value no text.
        """
        if type(value) is not float:
            value = _as_float(value)
        if not 0 < value < math.inf:
            raise ValueError(f"A counter only grows: value must be > 0 and finite, not {value!r}.")
        key = self._key(tags)
        if self._declaration is None:
            return
        rows = self._rows()
        with rows.lock:
            row = rows.by_tags.get(key) or rows.new(key)
            if row is not None:
                row[0] += value


class Gauge(_Metric):
    """The latest value of something.

    Args:
        name: for Prometheus.
        description: what it means, for people.
        tag_keys: names of tags: a tuple. `route`, if it is among them, is filled from the request.

    Raises:
        TypeError: `tag_keys` is no tuple of texts.
        ValueError: no name, a tag that Remora adds itself, or another metric of that name.
    """

    _kind = "gauge"

    def __init__(
        self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(name, description, tag_keys)

    def set(self, value: float | None, tags: Mapping[str, str] | None = None) -> None:
        """Set it.

        Args:
            value: any number; None changes nothing.
            tags: values of tags, before those that `set_default_tags` gave.

        Raises:
            ValueError: a tag is missing or unknown.
            TypeError: `value` is no number, or a tag's value no text.
        """
        if value is None:
            return
        if type(value) is not float:
            value = _as_float(value)
        key = self._key(tags)
        if self._declaration is None:
            return
        rows = self._rows()
        with rows.lock:
            row = rows.by_tags.get(key) or rows.new(key)
            if row is not None:
                row[0] = value


class Histogram(_Metric):
    """How values are spread.

    Args:
        name: for Prometheus; it adds `_bucket`, `_sum` and `_count`.
        description: what it means, for people.
        boundaries: upper bounds of the buckets, inclusive, all > 0.
        tag_keys: names of tags: a tuple. `route`, if it is among them, is filled from the request.

    Raises:
        TypeError: `tag_keys` is no tuple of texts.
        ValueError: no boundaries or wrong ones, no name, a tag that Remora adds itself, or another
            metric of that name.
    """

    _kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        self._bounds = _checked_boundaries(boundaries)
        #: As they were given.
        self.boundaries = boundaries
        super().__init__(name, description, tag_keys, self._bounds)

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys, default tags and boundaries."""
        return {**super().info, "boundaries": self.boundaries}

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Count a value.

        Args:
            value: any number; what is none (`nan`) is left out.
            tags: values of tags, before those that `set_default_tags` gave.

        Raises:
            ValueError: a tag is missing or unknown.
            TypeError: `value` is no number, or a tag's value no text.
        """
        if type(value) is not float:
            value = _as_float(value)
        key = self._key(tags)
        if self._declaration is None or value != value:
            # One of those would make the sum one for ever.
            return
        rows = self._rows()
        with rows.lock:
            row = rows.by_tags.get(key) or rows.new(key)
            if row is not None:
                row[bisect_left(self._bounds, value)] += 1
                row[-1] += value

    def _arguments(self) -> tuple[Any, ...]:
        return self._name, self._description, self.boundaries, self._tag_keys


def _rebuilt(
    kind: type[_Metric], arguments: tuple[Any, ...], default_tags: dict[str, str]
) -> _Metric:
    """Make a metric that has travelled; what it has counted stays where it was."""
    with warnings.catch_warnings():
        # Where it came from, that was said.
        warnings.simplefilter("ignore", UserWarning)
        return kind(*arguments).set_default_tags(default_tags)


def _as_float(value: Any) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"value must be a number, not {type(value).__name__} ({value!r})")
    return float(value)


def _reserved(key: str) -> str:
    return f"The tag {key!r} is reserved: every metric has it, and Remora fills it."


def _checked_tag_keys(given: Any, kind: str) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, tuple):
        raise TypeError(f"tag_keys must be a tuple, not {type(given).__name__} ({given!r})")
    for key in given:
        if not isinstance(key, str):
            raise TypeError(f"tag_keys must be texts, and {key!r} is none")
        if key in _RESERVED:
            raise ValueError(_reserved(key))
        if _TAG.fullmatch(key) is None or (key == "le" and kind == "histogram"):
            raise ValueError(
                f"{key!r} cannot be a tag: Prometheus takes letters, digits and '_', no '__' or "
                "digit at the beginning, and has its own 'le' in histograms."
            )
    if len(set(given)) < len(given):
        raise ValueError(f"tag_keys must differ from each other: {given!r}")
    return given


def _checked_boundaries(given: Any) -> tuple[float, ...]:
    example = "for example boundaries=[0.1, 1.0, 10.0]"
    if given is None or len(given) == 0:
        raise ValueError(f"A histogram needs boundaries: {example}.")
    made = tuple(sorted({_as_float(each) for each in given}))
    if not all(0 < each < math.inf for each in made):
        raise ValueError(f"boundaries must all be > 0 and finite, {example}; they are {given!r}.")
    if len(made) > _MAX_BOUNDARIES:
        raise ValueError(f"{len(made)} boundaries are too many: at most {_MAX_BOUNDARIES}.")
    return made
