from __future__ import annotations

import random
from pathlib import Path

import pytest

from remora.errors import ConfigError
from remora.simulation import Requests, read_load


def times(load: object) -> list[float]:
    return [at for at, _ in load.arrivals(random.Random(1))]  # type: ignore[attr-defined]


def test_requests_come_at_the_rates_that_were_said() -> None:
    load = Requests.parse("100@5, 100@50,100@0,100@0-10")
    assert load.length_s == 400
    found = times(load)
    assert found == sorted(found)
    parts = [sum(begin <= at < begin + 100 for at in found) for begin in (0, 100, 200, 300)]
    assert parts[0] == pytest.approx(500, rel=0.2)
    assert parts[1] == pytest.approx(5000, rel=0.1)
    assert parts[2] == 0
    assert parts[3] == pytest.approx(500, rel=0.2)
    ramp = [at for at in found if at >= 300]
    assert sum(at < 350 for at in ramp) < len(ramp) / 3


@pytest.mark.parametrize("text", ["", "60", "60@", "@5", "60@x", "60@5-", "a@b", "-1@5"])
def test_refuses_what_is_no_load(text: str) -> None:
    with pytest.raises(ConfigError, match="SECONDS@RATE"):
        Requests.parse(text)


def test_refuses_more_than_can_be_simulated() -> None:
    with pytest.raises(ConfigError, match=r"1e\+11 requests, and at most 5,000,000"):
        Requests.parse("99999999@1000")


def test_a_file_that_is_not_there_is_said_to_be_none() -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_load("nowhere.csv")


def test_reads_times_and_durations(tmp_path: Path) -> None:
    file = tmp_path / "load.csv"
    file.write_text("time,took\n1700000003.5,0.2\n1700000001.5,0.1\n# a comment\n1700000002.5\n")
    load = read_load(str(file))
    assert list(load.arrivals(random.Random(1))) == [(0.0, 0.1), (1.0, None), (2.0, 0.2)]
    assert load.length_s == 2.0
    file.write_text("1\nnonsense\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_load(str(file))


def test_reads_an_access_log(tmp_path: Path) -> None:
    file = tmp_path / "access-proxy-1.log"
    line = "2026-11-26T15:00:0{} 127.0.0.1 id-1 {} GET '/a b' 200 {}ms /\n"
    file.write_text(
        line.format(1, "default", "250.00")
        + line.format(1, "default", "250.00")
        + line.format(2, "other", "10.00")
        + line.format(3, "default", "1250.00")
        + "2026-11-26T15:00:03 - - - 3 lines were dropped: the disk was too slow\n"
    )
    load = read_load(str(file), "default")
    # The last one began before the others ended, and two of one second are spread over it.
    found = list(load.arrivals(random.Random(1)))
    assert [took for _, took in found] == [0.25, 0.25, 1.25]
    assert [at for at, _ in found] == pytest.approx([0.0, 0.5, 1.0])
    assert len(list(read_load(str(file)).arrivals(random.Random(1)))) == 4


def test_the_access_log_that_proxies_write_can_be_read(tmp_path: Path) -> None:
    from remora.observe.access import AccessLog
    from remora.testing.virtual_time import run

    file = tmp_path / "access-proxy-1.log"

    async def main() -> None:
        log = AccessLog(file)
        log.add_line("127.0.0.1", "GET", "/x y", 200, 0.125, "id 1", "default", "/")
        log.add_line("127.0.0.1", "POST", "/", 503, 0.25, "2", "")
        log.close()

    run(main())
    found = list(read_load(str(file)).arrivals(random.Random(1)))
    assert sorted(took or 0 for _, took in found) == [0.125, 0.25]
