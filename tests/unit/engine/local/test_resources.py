"""What a machine is said to have, and what a process gets to see of it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from remora.engine.base import ACCELERATOR_LABEL
from remora.engine.local.resources import Machine, this_machine
from remora.options.resources import MachineOptions
from remora.types import LOCAL_NODE
from remora.wire.holds import Hold


def test_a_machine_has_a_core_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = this_machine().resources
    assert found["CPU"] >= 1
    assert found["memory"] > 0
    assert "GPU" not in found


@pytest.mark.parametrize(
    ("visible", "names"),
    [("0", ("0",)), ("2,3", ("2", "3")), ("GPU-a, GPU-b", ("GPU-a", "GPU-b")), ("0,-1,1", ("0",))],
)
def test_gpus_are_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = this_machine()
    assert machine.gpus == names
    assert machine.resources["GPU"] == len(names)


def test_what_is_declared_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    options = MachineOptions(resources={"GPU": 2.0, "CPU": 64.0, "x": 1.0}, labels={"zone": "eu"})
    machine = this_machine(options)
    assert (machine.resources["CPU"], machine.resources["x"]) == (64.0, 1.0)
    assert machine.gpus == ("5", "1")
    assert machine.labels["zone"] == "eu"


class Nvml(ModuleType):
    """Stands for the library of the driver, with the GPUs that a test names."""

    class NVMLError(Exception):
        pass

    def __init__(self, *names: str) -> None:
        super().__init__("pynvml")
        self._names = names

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        if not self._names:
            raise self.NVMLError("no driver")

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return self._names[handle]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("NVIDIA A100-SXM4-80GB",) * 2, {ACCELERATOR_LABEL: "A100"}),
        (("NVIDIA H100 80GB HBM3",), {ACCELERATOR_LABEL: "H100"}),
        (("Tesla T4", "NVIDIA L4"), {}),
    ],
)
def test_gpus_and_their_kind_are_found_through_nvml(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], labels: dict[str, str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(*names))
    machine = this_machine()
    assert machine.resources["GPU"] == len(names)
    assert machine.labels == labels


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert "GPU" not in this_machine().resources


def test_a_process_sees_the_gpus_that_it_holds() -> None:
    machine = Machine({"GPU": 3.0}, gpus=("4", "5", "GPU-x"))
    one = (Hold(LOCAL_NODE, {"GPU": 1.0}, (1,)),)
    assert machine.environment(one, {"A": "1"}) == {"CUDA_VISIBLE_DEVICES": "5", "A": "1"}
    both = (*one, Hold(LOCAL_NODE, {"GPU": 1.0}, (2,)))
    assert machine.environment(both, {})["CUDA_VISIBLE_DEVICES"] == "5,GPU-x"
    # The user's own choice comes first; who says nothing of GPUs is left alone.
    chosen = {"CUDA_VISIBLE_DEVICES": "0"}
    assert machine.environment(one, chosen) == chosen
    assert machine.environment((Hold(LOCAL_NODE, {"CPU": 1.0}),), {}) == {}
    none = (Hold(LOCAL_NODE, {"GPU": 0.0}),)
    assert machine.environment(none, {}) == {"CUDA_VISIBLE_DEVICES": ""}
