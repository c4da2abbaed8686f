"""A config takes effect as a whole, and what it cannot bring about changes nothing."""

from __future__ import annotations

from remora.config import DeploymentConfig
from remora.core import actions as act
from remora.core import events as ev
from remora.core import requests
from remora.core.plan import plan
from remora.core.reconcile import Step, step
from remora.core.routing_view import routing_snapshot
from remora.core.saved_state import decode, encode
from remora.core.state import ControllerState
from remora.core.status import report
from remora.types import LOCAL_NODE
from remora.wire.control import DeclaredApplication


def declared(name: str, route: str | None = None) -> DeclaredApplication:
    return DeclaredApplication(name=name, route_prefix=route or f"/{name}", given=b"{}")


def built(
    app: DeclaredApplication, version: str = "1", config: DeploymentConfig | None = None
) -> ev.ApplicationRequest:
    return ev.ApplicationRequest(
        name=app.name,
        route_prefix=app.route_prefix,
        ingress="D",
        deployments=(
            ev.DeploymentRequest(
                name="D",
                code_key="code/1",
                code_version=version,
                config=config or DeploymentConfig(),
            ),
        ),
    )


class World:
    """The controller's decisions; builds end when a test says so."""

    def __init__(self, *, fixed_nodes: bool = False) -> None:
        self.state = ControllerState()
        self.builds: list[act.BuildApplication] = []
        self.cancelled = 0
        self.feed(
            ev.ControllerStarted(unix_s=1.7e9, salt="s", fixed_nodes=fixed_nodes),
            ev.NodeJoined(node_id=LOCAL_NODE, resources={"CPU": 8.0}),
        )

    def feed(self, *events: ev.AnyEvent) -> Step:
        made = step(self.state, events, 100.0)
        self.state = made.state
        for action in made.actions:
            if isinstance(action, act.BuildApplication):
                self.builds.append(action)
            elif isinstance(action, act.CancelBuilds):
                self.cancelled = action.before
        return made

    def submit(self, *apps: DeclaredApplication) -> None:
        self.feed(ev.ConfigSubmitted(applications=apps))

    def end_builds(self, *failing: str, version: str = "1") -> None:
        for build in self.builds:
            name = build.application.name
            if name in failing:
                self.feed(
                    ev.ApplicationNotBuilt(release=build.release, name=name, error="Traceback: x")
                )
            else:
                request = built(build.application, version)
                self.feed(ev.ApplicationBuilt(release=build.release, application=request))
        self.builds.clear()

    def routes(self) -> dict[str, str | None]:
        return {name: app.route_prefix for name, app in routing_snapshot(self.state).apps.items()}

    def statuses(self) -> dict[str, str]:
        return {name: app.status for name, app in report(self.state, 100.0).items()}


def test_nothing_changes_before_the_last_import() -> None:
    world = World()
    world.submit(declared("a"), declared("b"))
    first, second = world.builds
    world.feed(
        ev.ApplicationBuilt(release=first.release, application=built(first.application)),
    )
    assert world.routes() == {}
    assert world.statuses() == {"a": "DEPLOYING", "b": "DEPLOYING"}
    messages = [each.message for each in report(world.state, 100.0).values()]
    assert messages == ["Other applications are being imported.", "Its code is being imported."]
    world.feed(ev.ApplicationBuilt(release=second.release, application=built(second.application)))
    assert world.routes() == {"a": "/a", "b": "/b"}


def test_what_does_not_fit_together_is_refused_as_a_whole() -> None:
    world = World(fixed_nodes=True)
    apps = [declared("a"), declared("b")]
    world.submit(*apps)
    asked = DeploymentConfig(num_replicas=5, resources={"CPU": 1.0})
    too_much = [built(app, config=asked) for app in apps]
    for request in too_much:
        made = ev.ApplicationBuilt(release=world.state.release, application=request)
        # Each alone is small enough for the eight cores.
        assert requests.check(world.state, made) is None
        world.feed(made)
    assert world.routes() == {}
    assert world.statuses() == {"a": "DEPLOY_FAILED", "b": "DEPLOY_FAILED"}
    for status in report(world.state, 100.0).values():
        assert "Nothing was deployed" in status.message
        assert "CPU: 1 needed, 0 free of 8" in status.message
    planned = plan(world.state, ev.ConfigSubmitted(applications=tuple(apps)), too_much, {}, {})
    assert [(each.name, each.action) for each in planned.applications] == [
        ("a", "fail"),
        ("b", "fail"),
    ]
    assert "could never run here" in planned.applications[0].error


def test_a_config_that_is_refused_deletes_nothing() -> None:
    world = World(fixed_nodes=True)
    world.submit(declared("old"))
    world.end_builds()
    apps = [declared("a"), declared("b")]
    asked = DeploymentConfig(num_replicas=5, resources={"CPU": 1.0})
    too_much = [built(app, config=asked) for app in apps]
    planned = plan(world.state, ev.ConfigSubmitted(applications=tuple(apps)), too_much, {}, {})
    assert [(each.name, each.action) for each in planned.applications] == [
        ("a", "fail"),
        ("b", "fail"),
    ]
    world.submit(*apps)
    for request in too_much:
        world.feed(ev.ApplicationBuilt(release=world.state.release, application=request))
    assert "Nothing was deployed" in report(world.state, 100.0)["a"].message
    assert world.routes() == {"old": "/old"}
    # Once one can be done, all of it is.
    world.builds.clear()
    world.submit(*apps)
    world.end_builds()
    assert world.routes() == {"a": "/a", "b": "/b"}


def test_an_application_with_another_name_takes_over_when_it_can_be_imported() -> None:
    world = World()
    world.submit(declared("old", "/x"), declared("other"))
    world.end_builds()
    renamed = declared("new", "/x")
    failed = {"new": "Traceback: x"}
    planned = plan(world.state, ev.ConfigSubmitted(applications=(renamed,)), [], failed, {})
    assert {each.name: each.action for each in planned.applications} == {
        "new": "fail",
        "other": "delete",
    }
    assert "application 'old'" in planned.applications[0].error
    world.submit(renamed)
    world.end_builds("new")
    assert world.routes() == {"old": "/x"}
    status = report(world.state, 100.0)["new"]
    assert status.status == "DEPLOY_FAILED"
    assert "application 'old', which the config does not declare any more, goes" in status.message
    assert world.state.outcomes[world.state.release].reason == "new: Traceback: x"
    world.submit(renamed)
    world.end_builds()
    assert world.routes() == {"new": "/x"}


def test_routes_are_exchanged_in_one_step() -> None:
    world = World()
    world.submit(declared("a"), declared("b"))
    world.end_builds()
    world.submit(declared("a", "/b"), declared("b", "/a"))
    world.end_builds()
    assert world.routes() == {"a": "/b", "b": "/a"}


def test_a_route_whose_owner_could_not_be_imported_stays_his() -> None:
    world = World()
    world.submit(declared("a"), declared("b"), declared("c"))
    world.end_builds()
    world.submit(declared("a", "/new"), declared("b", "/a"), declared("c", "/b"))
    world.end_builds("a")
    # b cannot have the route of a, and so c not that of b.
    assert world.routes() == {"a": "/a", "b": "/b", "c": "/c"}
    status = report(world.state, 100.0)
    assert "Traceback: x" in status["a"].message
    assert "belongs to application 'a'" in status["b"].message
    assert "belongs to application 'b'" in status["c"].message


def test_what_is_not_declared_any_more_goes_when_the_rest_is_imported() -> None:
    world = World()
    world.submit(declared("a"), declared("b"))
    world.end_builds()
    world.feed(ev.DeployRequested(applications=(built(declared("script")),)))
    world.submit(declared("b"))
    assert set(world.routes()) == {"a", "b", "script"}
    world.end_builds()
    assert set(world.routes()) == {"b", "script"}
    world.submit()
    assert set(world.routes()) == {"script"}


def test_a_failed_import_leaves_the_version_before() -> None:
    world = World()
    world.submit(declared("a"))
    world.end_builds()
    before = world.state.applications["a"].deployments["D"].target
    world.submit(declared("a", "/elsewhere"))
    world.end_builds("a")
    # It does not serve yet.
    assert "goes on serving" not in report(world.state, 100.0)["a"].message
    (replica_id,) = world.state.applications["a"].deployments["D"].replicas
    world.feed(
        ev.ProcessStarted(replica_id=replica_id, address="unix:/d", pid=7, node_id=LOCAL_NODE),
        ev.ReplicaReady(replica_id=replica_id),
    )
    app = world.state.applications["a"]
    assert (app.deployments["D"].target, app.route_prefix) == (before, "/a")
    status = report(world.state, 100.0)["a"]
    assert status.status == "DEPLOY_FAILED"
    assert "The version before goes on serving." in status.message
    world.submit(declared("a"))
    world.end_builds()
    assert world.statuses()["a"] != "DEPLOY_FAILED"


def test_a_later_config_replaces_one_that_is_being_imported() -> None:
    world = World()
    world.submit(declared("a"), declared("b"))
    old = world.builds.copy()
    world.builds.clear()
    world.submit(declared("a"))
    assert world.cancelled == 2
    for build in old:
        world.feed(
            ev.ApplicationBuilt(release=build.release, application=built(build.application, "old"))
        )
    assert world.routes() == {}
    world.end_builds(version="new")
    assert set(world.routes()) == {"a"}
    assert world.state.applications["a"].deployments["D"].target.code_version == "new"
    assert "b" not in world.state.applications


def test_what_a_later_config_leaves_out_does_not_look_as_if_the_earlier_had_worked() -> None:
    world = World()
    world.submit(declared("a"))
    world.end_builds()
    world.submit(declared("a", "/elsewhere"), declared("new"))
    world.builds.clear()
    world.submit(declared("b"))
    status = report(world.state, 100.0)
    assert "new" not in status
    assert status["a"].release == 3
    assert world.routes() == {"a": "/a"}
    world.end_builds()
    assert set(world.routes()) == {"b"}


def test_the_same_config_again_changes_no_replica() -> None:
    world = World()
    world.submit(declared("a"))
    world.end_builds()
    replicas = dict(world.state.applications["a"].deployments["D"].replicas)
    world.submit(declared("a"))
    world.end_builds()
    assert world.state.applications["a"].deployments["D"].replicas == replicas
    assert world.state.release == 2


def test_a_controller_that_restarts_asks_for_the_imports_again() -> None:
    world = World()
    world.submit(declared("a"), declared("b"))
    first = world.builds.pop(0)
    world.feed(ev.ApplicationBuilt(release=first.release, application=built(first.application)))
    world.builds.clear()
    world.state = decode(encode(world.state))
    world.feed(ev.ControllerStarted(unix_s=1.7e9, salt="s"))
    assert [build.application.name for build in world.builds] == ["a", "b"]
    world.end_builds()
    assert set(world.routes()) == {"a", "b"}


def test_a_program_takes_an_application_over_while_it_is_imported() -> None:
    world = World()
    world.submit(declared("a"))
    world.feed(ev.DeployRequested(applications=(built(declared("a"), "program"),)))
    world.end_builds(version="config")
    app = world.state.applications["a"]
    assert app.declared is None
    assert app.deployments["D"].target.code_version == "program"


def test_a_program_takes_over_one_that_could_not_be_imported() -> None:
    world = World()
    world.submit(declared("a"), declared("b"))
    first = world.builds[0]
    world.feed(ev.ApplicationNotBuilt(release=first.release, name="a", error="Traceback: x"))
    world.feed(
        ev.DeployRequested(applications=(built(declared("a")), built(declared("b")))),
    )
    assert world.state.submission is None
    assert world.statuses() == {"a": "DEPLOYING", "b": "DEPLOYING"}


def test_one_that_is_deleted_while_it_is_imported_does_not_come_back() -> None:
    world = World()
    world.submit(declared("a"), declared("b"))
    world.feed(ev.DeleteRequested(names=("a",)))
    world.end_builds()
    assert set(world.routes()) == {"b"}


def leaving() -> World:
    """One application, which runs and is being deleted."""
    world = World()
    world.submit(declared("a"))
    world.end_builds()
    (replica_id,) = world.state.applications["a"].deployments["D"].replicas
    world.feed(
        ev.ProcessStarted(replica_id=replica_id, address="unix:/d", pid=7, node_id=LOCAL_NODE),
        ev.ReplicaReady(replica_id=replica_id),
    )
    world.feed(ev.DeleteRequested(names=("a",)))
    assert world.statuses() == {"a": "DELETING"}
    return world


def end_replicas(world: World) -> None:
    for replica_id in list(world.state.applications["a"].deployments["D"].replicas):
        world.feed(ev.ProcessExited(replica_id=replica_id, reason="x", expected=True))


def test_one_that_is_declared_again_while_it_is_deleted_is_not_told_as_deleted() -> None:
    world = leaving()
    world.submit(declared("a"))
    assert world.statuses() == {"a": "DEPLOYING"}
    status = report(world.state, 100.0)["a"]
    assert status.message.splitlines()[0] == "Its code is being imported."
    # The same version as before, whose replica goes: nothing is wrong with it.
    world.end_builds()
    assert world.statuses() == {"a": "DEPLOYING"}
    assert set(world.routes()) == {"a"}


def test_one_that_is_declared_again_outlives_its_last_replica() -> None:
    world = leaving()
    world.submit(declared("a"))
    end_replicas(world)
    assert world.statuses() == {"a": "DEPLOYING"}
    assert not world.routes()
    world.end_builds(version="2")
    assert set(world.routes()) == {"a"}


def test_one_that_is_declared_again_and_cannot_be_imported_says_so() -> None:
    world = leaving()
    world.submit(declared("a"))
    world.end_builds("a")
    assert world.statuses() == {"a": "DEPLOY_FAILED"}
    end_replicas(world)
    assert world.statuses() == {"a": "DEPLOY_FAILED"}
    assert not world.routes()
    # It is no more than what was declared: the next config decides about it.
    world.submit()
    assert not world.statuses()


def test_one_that_is_left_out_again_before_it_is_gone_goes() -> None:
    world = leaving()
    world.submit(declared("a"))
    world.end_builds("a")
    world.submit(declared("b"))
    assert world.statuses()["a"] == "DELETING"
    end_replicas(world)
    assert "a" not in world.statuses()


def test_one_that_is_deleted_again_while_it_is_imported_goes() -> None:
    world = leaving()
    world.submit(declared("a"))
    world.feed(ev.DeleteRequested(names=("a",)))
    assert world.statuses() == {"a": "DELETING"}
    end_replicas(world)
    assert not world.statuses()


def test_a_shutdown_ends_the_imports() -> None:
    world = World()
    world.submit(declared("a"))
    world.feed(ev.ShutdownRequested())
    assert world.cancelled == 2
    world.end_builds()
    assert world.state.applications == {}


def test_a_route_of_a_program_is_refused_and_one_of_a_config_that_comes_too() -> None:
    world = World()
    world.feed(ev.DeployRequested(applications=(built(declared("script")),)))
    refused = requests.check(
        world.state, ev.ConfigSubmitted(applications=(declared("a", "/script"),))
    )
    assert refused is not None
    assert "belongs to application 'script'" in str(refused)
    world.submit(declared("a"))
    late = ev.DeployRequested(applications=(built(declared("other", "/a")),))
    assert "belongs to application 'a'" in str(requests.check(world.state, late))
