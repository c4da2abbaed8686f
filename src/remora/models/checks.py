"""What users ask of a loader of models, checked, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from remora.core.request.model_cache import Limits


@dataclass(frozen=True)
class LoaderOptions:
    """What `@multiplexed` was given.

    Attributes:
        limits: of the cache.
        size_fn: how many bytes a model will take; None: bytes are not limited.
        pin: loaded at the start, never unloaded.
        preload: loaded at the start.
    """

    limits: Limits = field(default_factory=Limits)
    size_fn: Callable[[str], int] | None = None
    pin: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checks:
    """Checks for one loader.

    Attributes:
        name: of the user's function.
        options: what its decorator was given.
    """

    name: str
    options: LoaderOptions

    def id(self, model_id: object) -> str:
        """See that this is an id; returns it as plain text, which travels.

        Raises:
            TypeError: it is no text.
            ValueError: it is empty.
        """
        if not isinstance(model_id, str):
            raise TypeError(
                f"{self.name}: a model id must be a str, not {type(model_id).__name__} "
                f"({model_id!r})"
            )
        if not model_id:
            raise ValueError(
                f"{self.name}: the model id is empty. A request names its model in the header "
                "serve_multiplexed_model_id, or by handle.options(multiplexed_model_id=...)."
            )
        return str.__str__(model_id)

    def ids(self, model_ids: Iterable[str]) -> set[str]:
        """See that these are ids.

        Raises:
            TypeError: a text instead of a list of them, or an id that is none.
            ValueError: an empty one.
        """
        if isinstance(model_ids, str):
            raise TypeError(f"{self.name}: give a list of model ids, not the str {model_ids!r}")
        return {self.id(model_id) for model_id in model_ids}

    def size_of(self, model_id: str) -> int:
        """How many bytes a model takes; 0: nobody counts.

        Raises:
            TypeError: the user's function returned no int.
            ValueError: it takes more than there may be.
        """
        size_fn, limit = self.options.size_fn, self.options.limits.max_bytes
        if size_fn is None or limit is None:
            return 0
        num_bytes: object = size_fn(model_id)
        if not isinstance(num_bytes, int) or isinstance(num_bytes, bool):
            raise TypeError(
                f"{self.name}: size_fn({model_id!r}) must return a number of bytes as an int, "
                f"not {type(num_bytes).__name__} ({num_bytes!r})"
            )
        if not 0 <= num_bytes <= limit:
            raise ValueError(
                f"{self.name}: model {model_id!r} takes {num_bytes} bytes, and a replica has room "
                f"for 0 to {limit} (max_bytes_per_replica)"
            )
        return num_bytes

    def no_room(self, model_id: str, reason: str, pinned: Iterable[str]) -> str:
        """Say why a model cannot be loaded."""
        return (
            f"{self.name}: there is no room for model {model_id!r}: {reason}. Pinned: "
            f"{', '.join(sorted(pinned))}. "
            "Unpin one or raise the limit."
        )
