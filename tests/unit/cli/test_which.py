"""Which instance a command is about, and where one is not started although it was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from remora.cli.errors import CommandError
from remora.cli.instance import begun, find
from remora.config import EngineOptions
from remora.engine.claim import Claim, Owner
from remora.engine.launch import LaunchSetup
from remora.home import Home

VARIABLE = "REMORA_ADDRESS"


@pytest.fixture
def claim(remora_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Claim]:
    """An instance runs in the folder."""
    monkeypatch.delenv(VARIABLE, raising=False)
    taken = Claim.take(Home(remora_home))
    taken.write_owner(Owner(os.getpid(), "token"))
    yield taken
    taken.close()


def test_no_application_is_served_here_that_is_meant_for_a_cluster(claim: Claim) -> None:
    asked = EngineOptions(engine="ray", address="head:6379")
    told = pytest.raises(CommandError, match=r"asked for \(head:6379.*on this machine alone")
    with told, begun(LaunchSetup(engine=asked), bound=True, asked=False):
        pass
    with begun(LaunchSetup(), bound=True, asked=False) as found:
        assert found.pid == os.getpid()


@pytest.mark.parametrize(
    ("cluster", "address", "told"),
    [
        ("", "", ""),
        ("", "head:6379", "which runs on this machine alone: REMORA_ADDRESS=head:6379 is for"),
        ("", "auto", "which runs on this machine alone: REMORA_ADDRESS=auto is for the start"),
        ("10.0.0.1:6379", "", ""),
        ("10.0.0.1:6379", "auto", ""),
        ("10.0.0.1:6379", "10.0.0.1:6379", ""),
        ("10.0.0.1:6379", "other:6379", "on the Ray cluster 10.0.0.1:6379: REMORA_ADDRESS=other:"),
    ],
)
def test_commands_are_about_the_folder_and_say_so_where_the_environment_names_another_place(
    cluster: str,
    address: str,
    told: str,
    claim: Claim,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = "ray" if cluster else "local"
    claim.write_owner(Owner(os.getpid(), "token", engine=engine, cluster=cluster))
    monkeypatch.setenv(VARIABLE, address)
    assert find().cluster == cluster
    out, err = capsys.readouterr()
    assert (out, told in err, bool(err)) == ("", True, bool(told))


def test_without_an_instance_it_is_said_what_the_address_is_for(
    remora_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "head:6379")
    with pytest.raises(
        CommandError, match=r"joins that of a cluster \(REMORA_ADDRESS=head:6379 is"
    ):
        find()


def test_an_instance_of_another_version_is_told_in_one_line(
    claim: Claim, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("remora.__version__", "99.0")
    find()
    with begun(LaunchSetup(), bound=True, asked=False):
        pass
    own, started = capsys.readouterr().err.splitlines()
    assert own == started
    assert "this is 99.0" in own
