"""Claiming a state folder, and what is said when an address cannot be used."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from remora.engine.claim import Claim, Owner, find_owner, own_version
from remora.engine.doors import _address_error
from remora.engine.launch import wait_while_ending
from remora.errors import InstanceError
from remora.home import Home

ME = Owner(os.getpid(), "token", "http://127.0.0.1:8000", bound=True, version=own_version())


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    home = Home.locate(tmp_path / "home")
    assert find_owner(home) is None
    claim = Claim.take(home)
    claim.write_owner(ME)
    assert find_owner(home) == ME
    with pytest.raises(InstanceError, match=f"pid {ME.pid} .*http://127.0.0.1:8000"):
        Claim.take(home)
    claim.close()
    assert find_owner(home) is None


def test_an_owner_tells_that_it_ends(tmp_path: Path) -> None:
    home = Home.locate(tmp_path)
    claim = Claim.take(home)
    claim.write_ending()
    assert find_owner(home) is None
    claim.write_owner(ME)
    claim.write_ending()
    assert find_owner(home) == replace(ME, ending=True)
    claim.close()


def test_whoever_waits_for_an_ending_instance_goes_on_when_it_is_gone(tmp_path: Path) -> None:
    home = Home.locate(tmp_path)
    wait_while_ending(home)
    claim = Claim.take(home)
    claim.write_owner(ME)
    # It runs: nothing to wait for.
    wait_while_ending(home)
    claim.write_ending()
    with pytest.raises(InstanceError, match=f"pid {ME.pid}.* has been ending for 0 s"):
        wait_while_ending(home, 0.0)
    thread = threading.Thread(target=wait_while_ending, args=(home, 10.0))
    thread.start()
    assert thread.is_alive()
    claim.close()
    thread.join(5.0)
    assert not thread.is_alive()


def test_the_next_owner_learns_who_did_not_leave_in_order(tmp_path: Path) -> None:
    home = Home.locate(tmp_path)
    killed = Claim.take(home)
    killed.write_owner(ME)
    killed.close()
    successor = Claim.take(home)
    assert successor.previous == ME
    successor.write_owner(None)
    successor.close()
    third = Claim.take(home)
    assert third.previous is None
    third.close()


def test_who_only_looks_for_an_owner_keeps_nobody_from_being_one(tmp_path: Path) -> None:
    home = Home.locate(tmp_path)
    Claim.take(home).close()
    # As long as `find_owner` holds it, and then some.
    fd = os.open(home.lock_file, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    looking = threading.Timer(0.02, os.close, (fd,))
    looking.start()
    Claim.take(home).close()
    looking.join()


def test_many_who_look_at_once_keep_nobody_from_being_one(tmp_path: Path) -> None:
    home = Home.locate(tmp_path)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            find_owner(home)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            Claim.take(home).close()
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\0" * 10])
def test_a_lock_file_that_was_cut_off_is_no_obstacle(tmp_path: Path, text: str) -> None:
    home = Home.locate(tmp_path)
    home.lock_file.write_text(text, encoding="utf-8")
    claim = Claim.take(home)
    assert claim.previous is None
    claim.close()


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    claim = Claim.take(Home.locate(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(InstanceError, match=r"Cannot use the state folder .* has room"):
            claim.write_owner(ME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    claim.close()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EADDRINUSE, "in use"), "Choose another one with --port"),
        (PermissionError(errno.EACCES, "denied"), "1024 or higher"),
        (OSError(errno.EADDRNOTAVAIL, "no such address"), "--host"),
        (OverflowError("port"), "from 0 to 65535"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_with_what_to_do(
    error: Exception, advice: str
) -> None:
    message = str(_address_error("127.0.0.1", 80, error))
    assert "127.0.0.1:80" in message
    assert advice in message
