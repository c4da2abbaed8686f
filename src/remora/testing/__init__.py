"""Fakes for tests of what is built on Remora, and of Remora itself.

asgi_app       the front door of this process's instance, for ASGI test clients; with
               `remora.run(app, _local_testing_mode=True)` nothing leaves this process
FakeEngine     an engine in memory: processes start, crash and fail as a test says
FakeReplicas   what answers at the addresses of a FakeEngine's processes
FakeClock      a clock that moves when it is told to
replay         repeats what was observed, from a list of it
replay_kept    the same from the event log of a controller
virtual_time   runs a coroutine on a loop whose time jumps to the next timer
"""

from remora.testing.asgi import asgi_app
from remora.testing.clock import FakeClock
from remora.testing.fake_engine import FakeEngine
from remora.testing.fake_replicas import FakeReplicas
from remora.testing.replay import replay, replay_kept

__all__ = ["FakeClock", "FakeEngine", "FakeReplicas", "asgi_app", "replay", "replay_kept"]
