"""A file of several YAML documents as one config, such as `remora config` prints.

One document may be a config; each other one is an application of it.

Rules: pure; reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence

from remora.config_file.problem import Path

#: Beside `import_path`: of a config, or of Ray Serve's old ones of a single application.
_OF_A_CONFIG = frozenset({"applications", "host", "port"})


def is_application(document: object) -> bool:
    """Tell an application from a config. Pure."""
    return (
        isinstance(document, dict)
        and "import_path" in document
        and not _OF_A_CONFIG & document.keys()
    )


def joined(documents: Sequence[object]) -> tuple[object, list[Path]]:
    """Make one config of documents, and say where in it each of them is.

    Pure.

    Args:
        documents: what they hold; none of them is empty.

    Raises:
        SecondConfig: two of them are no applications.
    """
    if len(documents) == 1 and not is_application(documents[0]):
        return documents[0], [()]
    configs = [index for index, one in enumerate(documents) if not is_application(one)]
    if len(configs) > 1:
        raise SecondConfig(configs[1])
    config = documents[configs[0]] if configs else {}
    listed = config.get("applications", []) if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(listed, list):
        return config, [() for _ in documents]  # it says what is wrong with that one
    applications = list(listed)
    places: list[Path] = []
    for one in documents:
        if is_application(one):
            places.append(("applications", len(applications)))
            applications.append(one)
        else:
            places.append(())
    return {**config, "applications": applications}, places


class SecondConfig(Exception):
    """Two documents of a file are no applications.

    Attributes:
        index: of the second one.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        super().__init__(index)
