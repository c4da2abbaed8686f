"""Every error of Remora, and where each one belongs.

    RemoraError (RayServeException)
    ├── ConfigError             a value that cannot be right: which field, which value, what is allowed
    │   ├── NotSupportedYetError    right, but nothing here reads it yet: refused, never ignored
    │   └── ConfigFileError         a config file, or one sent over REST, with all that is wrong with it
    ├── MissingExtraError       a library is not installed that an option needs
    ├── DeployError             an application could not be brought up
    │   ├── AppLoadError        the import path leads to nothing deployable
    │   ├── CodeNotPicklableError   code or arguments cannot be sent to a replica
    │   ├── ReleaseError        there is no such release to go back to
    │   ├── RouteTakenError     another application owns the route prefix
    │   ├── PlacementError      the machine, or all nodes, could never hold it
    │   └── ReplicaStartError   the user's constructor or first health check failed
    ├── NotDeployedError        no handle: there is no such application or deployment (also a KeyError)
    ├── PolicyError             an autoscaling policy of the user's failed
    ├── ScaleError              a number of replicas cannot be set
    │   ├── UnknownTargetError          there is no such application or deployment
    │   └── ExternalScalerDisabledError it is not scaled from outside
    ├── RequestError            one request failed; has an HTTP status and says if a retry is safe
    │   ├── BackPressureError           the queue is full
    │   ├── DeploymentUnavailableError  no replica, and none will come for now
    │   ├── ReplicaUnavailableError     the replica asked for is gone
    │   ├── ReplicaDiedError            the replica died while it worked on the request
    │   ├── RequestCancelledError       the caller cancelled it
    │   ├── RequestTimeoutError         its time was up (also a TimeoutError)
    │   ├── MethodNotFoundError         the deployment has no such method
    │   ├── RemoteError                 the user's exception could not be carried over as itself
    │   └── gRPCStatusError             ends a gRPC request with a status of the user's choice
    ├── EngineError             starting, stopping or storing failed below us
    │   ├── InstanceError       another instance, or none, uses this state folder or port
    │   └── ConnectionLostError the process on the other side of a connection went away
    ├── ProtocolError           the other side does not speak our wire protocol
    │   └── RefusedError        it does, and takes no connection from here: says why
    └── InternalError           a bug in Remora

A user's own exception is not in this tree: it reaches the caller as its own type, with the
remote traceback attached as a note.

Rules: a message says what failed, on which id, with which numbers, and what to do next.
Every class survives pickling. Names that Ray Serve users catch keep their meaning.
"""

from __future__ import annotations

from typing import Any

#: What user code may raise without ending the process that runs it. A cancellation is none of them.
USER_ERRORS = (Exception, SystemExit, KeyboardInterrupt)


def rebuild(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    """Make an error again without running its constructor: that may take other arguments."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__setstate__(state)
    return error


class RemoraError(Exception):
    """Base of every error that Remora raises on purpose."""

    #: How an HTTP front door answers when a request ends in this error.
    http_status: int = 500
    #: Seconds after which a client may try again; None: unknown.
    retry_after_s: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.args, self.__dict__.copy())

    @property
    def message(self) -> str:
        """What went wrong, for people."""
        return str(self)


#: The name Ray Serve users catch.
RayServeException = RemoraError


class ConfigError(RemoraError, ValueError):
    """An option has a value that cannot be right."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        super().__init__(f"{field}={value!r} is not allowed: {allowed}")


class NotSupportedYetError(ConfigError):
    """The option is known and its value is right, but nothing acts on it yet."""

    def __init__(self, field: str, value: object, advice: str = "leave it out") -> None:
        super().__init__(field, value, f"this version does not support it yet; {advice}")


class ConfigFileError(ConfigError):
    """A config cannot be right.

    Attributes:
        problems: each with where it is.
    """

    def __init__(self, problems: list[str]) -> None:
        self.field = "config"
        self.problems = list(problems)
        RemoraError.__init__(self, "\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.args, self.__dict__.copy())


class MissingExtraError(RemoraError, ModuleNotFoundError):
    """A library is not installed that an option needs."""

    def __init__(self, needs: str, extra: str) -> None:
        self.extra = extra
        super().__init__(
            f"{needs}, which is not installed: pip install 'remora[{extra}]' brings it."
        )


class DeployError(RemoraError, RuntimeError):
    """An application could not be brought up; the old version, if any, keeps serving."""


class AppLoadError(DeployError):
    """The import path leads to nothing that can be deployed.

    Attributes:
        user_traceback: of the user's own code, trimmed to it; empty: their code did not raise.
    """

    def __init__(self, message: str, user_traceback: str = "") -> None:
        self.user_traceback = user_traceback
        super().__init__(message)


class CodeNotPicklableError(DeployError, TypeError):
    """Code or constructor arguments cannot be sent to a replica."""

    def __init__(
        self,
        where: str,
        reason: str,
        receiver: str = "a replica",
        instead: str = "in the constructor of your class (it runs in the replica)",
    ) -> None:
        self.where = where
        super().__init__(
            f"{where} cannot be pickled and so cannot be sent to {receiver}: {reason}. Create it "
            f"{instead} instead of outside."
        )


class ReleaseError(DeployError):
    """There is no such release, or it cannot come back."""


class RouteTakenError(DeployError):
    """Another live application owns the route prefix."""


class PlacementError(DeployError):
    """What a deploy asks for is more than there is, even if nothing else ran."""


class NotDeployedError(RemoraError, KeyError):
    """There is no such application, or it has no such deployment, so there is nothing to call.

    Ray Serve's users catch one of them as RayServeException and the other one as KeyError.
    """

    http_status = 404
    #: That of KeyError is for keys.
    __str__ = Exception.__str__


class PolicyError(RemoraError):
    """An autoscaling policy of the user's raised, returned nonsense, or said nothing in time."""


class ScaleError(RemoraError):
    """A number of replicas cannot be set; nothing has changed."""

    http_status = 400


class UnknownTargetError(ScaleError):
    """There is no such application or deployment."""

    http_status = 404


class ExternalScalerDisabledError(ScaleError):
    """The deployment is not scaled from outside, or not any more."""

    http_status = 412


class ReplicaStartError(DeployError):
    """The user's constructor, `reconfigure` or first health check failed."""


class RequestError(RemoraError):
    """One request failed inside the serving system."""


class BackPressureError(RequestError):
    """As many requests wait for this deployment as may wait."""

    http_status = 503

    def __init__(
        self,
        num_queued_requests: int,
        max_queued_requests: int,
        status_code: int = 503,
        retry_after_s: float | None = None,
        share: int | None = None,
    ) -> None:
        self.num_queued_requests = num_queued_requests
        self.max_queued_requests = max_queued_requests
        self.status_code = self.http_status = status_code
        self.retry_after_s = retry_after_s
        here = ""
        if share is not None and share < max_queued_requests:
            here = f", of which {share} places are left to this process while others use theirs"
        again = "later" if retry_after_s is None else f"in {retry_after_s:g} s"
        super().__init__(
            f"Request dropped: {num_queued_requests} requests wait already and "
            f"max_queued_requests is {max_queued_requests}{here}. Try again {again}, or raise "
            "max_queued_requests or num_replicas."
        )


class DeploymentUnavailableError(RequestError):
    """The deployment has no replica and will get none until somebody acts."""

    http_status = 503

    def __init__(self, deployment_id: object, reason: str = "") -> None:
        self.deployment_id = deployment_id
        super().__init__(
            f"Deployment {deployment_id} is unavailable: {reason or 'no replica runs'}"
        )


class ReplicaUnavailableError(RequestError):
    """The replica that was asked for is gone or takes no more requests."""

    http_status = 503

    def __init__(self, replica_id: object) -> None:
        self.replica_id = replica_id
        super().__init__(f"Replica {replica_id} is gone; choose another one.")


class ReplicaDiedError(RequestError):
    """The replica died while it worked on the request, which was not safe to repeat."""

    def __init__(self, replica_id: object, request_id: str = "", detail: str = "") -> None:
        self.replica_id = replica_id
        self.request_id = request_id
        super().__init__(
            f"Replica {replica_id} died while it worked on request {request_id}"
            f"{': ' + detail if detail else ''}. It was not repeated because it may have had "
            "effects. If repeating is safe, declare it: @deployment(idempotent=True), or "
            "@method(idempotent=True) on the method."
        )


class RequestCancelledError(RequestError):
    """The caller cancelled the request."""

    http_status = 499

    def __init__(self, request_id: str | None = None) -> None:
        self.request_id = request_id
        super().__init__(f"Request {request_id or ''} was cancelled.".replace("  ", " "))


class RequestTimeoutError(RequestError, TimeoutError):
    """The request's time was up before its answer was there."""

    http_status = 408

    def __init__(self, request_id: str, timeout_s: float) -> None:
        self.request_id = request_id
        self.timeout_s = timeout_s
        super().__init__(f"Request {request_id} timed out after {timeout_s:g}s.")


class MethodNotFoundError(RequestError, AttributeError):
    """The deployment has no method of that name."""


class RemoteError(RequestError):
    """The user's exception could not be carried over as itself; its type and text are in here.

    The message also says what kept it from travelling.
    """


class gRPCStatusError(RequestError):  # noqa: N801 - the name that Ray Serve's users know
    """Ends a gRPC request with a status of the user's choice.

    A handler may raise it. What a handler raises after it has set a code in its `grpc_context`
    counts as one.

    Attributes:
        original_exception: what was raised; None: nothing but this.
        grpc_code: a `grpc.StatusCode`, or its number.
        grpc_details: what the client is told; None: the text of the exception.
    """

    def __init__(
        self,
        original_exception: BaseException | None = None,
        code: object = None,
        details: str | None = None,
    ) -> None:
        self.original_exception = original_exception
        self.grpc_code: object = 13 if code is None else code
        self.grpc_details = details
        super().__init__(details or str(original_exception or "") or f"gRPC status {code}")


class EngineError(RemoraError):
    """Starting or stopping a process, or storing state, failed."""


class InstanceError(EngineError):
    """No instance where one is needed, or one where none may be."""


class ConnectionLostError(EngineError):
    """The process on the other side of a connection went away."""


class ProtocolError(RemoraError):
    """The other side does not speak our wire protocol, or breaks its rules."""


class RefusedError(ProtocolError):
    """The other side takes no connection from here; its text says why."""


class InternalError(RemoraError):
    """This should never happen: it is a bug in Remora. Please report it."""
