"""`ServeSubmissionClient`: the REST API from Python, with the names that Ray Serve's users know.

Rules: the standard library alone; whoever operates an instance from elsewhere needs nothing of it.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from remora.errors import ConfigFileError, RemoraError

_APPLICATIONS = "/api/serve/applications/"
#: Seconds for an answer; a config is accepted before its code is imported.
_TIMEOUT_S = 60.0


class ServeSubmissionClient:
    """Operates an instance over its REST API."""

    def __init__(
        self,
        dashboard_head_address: str,
        create_cluster_if_needed: bool = False,
        cookies: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a client; it connects with each call.

        Args:
            dashboard_head_address: `http://host:8265` of the instance.
            create_cluster_if_needed: must be False: an instance is started on its own machine.
            cookies: sent with each request.
            metadata: must be empty.
            headers: sent with each request, `Authorization` among them.

        Raises:
            ValueError: the address is not one of HTTP, or an option has no meaning here.
        """
        address = dashboard_head_address.rstrip("/")
        if not address.startswith(("http://", "https://")):
            raise ValueError(
                f"dashboard_head_address={dashboard_head_address!r} must begin with http:// or "
                "https://"
            )
        if create_cluster_if_needed or metadata:
            raise ValueError(
                "create_cluster_if_needed and metadata have no meaning here: `remora start` "
                "starts an instance on its own machine"
            )
        self._address = address
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        if cookies:
            self._headers["Cookie"] = "; ".join(f"{key}={cookies[key]}" for key in cookies)

    def get_version(self) -> str:
        """Return the version of the API."""
        return str(self._ask("GET", "/api/ray/version")["version"])

    def get_serve_details(self) -> dict[str, Any]:
        """Return what runs, in the shape of `GET /api/serve/applications/`."""
        details: dict[str, Any] = self._ask("GET", _APPLICATIONS)
        return details

    def deploy_applications(self, config: dict[str, Any]) -> None:
        """Hand in a config; returns when it is accepted.

        Raises:
            ConfigFileError: something in it is wrong.
            RemoraError: it was refused, or nobody answers.
        """
        self._ask("PUT", _APPLICATIONS, config)

    def delete_applications(self) -> None:
        """Begin to delete every application."""
        self._ask("DELETE", _APPLICATIONS)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._address}{path}", data, self._headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise RemoraError(
                f"Nobody answers at {self._address}: {reason}. `remora status` on that machine "
                "tells where the REST API is."
            ) from None
        return json.loads(content) if content else None

    def _refusal(self, error: urllib.error.HTTPError) -> RemoraError:
        """Make an error of ours of an answer."""
        with error:
            content = error.read()
        try:
            told = json.loads(content)
            message, problems = str(told["error"]), told.get("problems")
            message = " ".join(text for text in (message, told.get("hint")) if text)
        except (ValueError, TypeError, KeyError):
            message, problems = content.decode(errors="replace")[:1000], None
        if problems:
            return ConfigFileError([str(each) for each in problems])
        return RemoraError(f"{self._address} answered {error.code}: {message}")
