"""The longest prefix on whole segments wins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.route_table import RouteTable, normalise

paths = st.lists(st.sampled_from(("a", "b", "ab", "a b", "ä", "")), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
prefixes = paths.map(normalise)


def is_below(path: str, prefix: str) -> bool:
    return prefix == "/" or path == prefix or path.startswith(prefix + "/")


@given(st.sets(prefixes, max_size=6), paths)
def test_the_longest_prefix_wins(routes: set[str], path: str) -> None:
    found = RouteTable({route: route for route in routes}).match(path)
    fitting = [route for route in routes if is_below(path, route)]
    assert found == ((max(fitting, key=len),) * 2 if fitting else None)


@given(st.sets(prefixes, max_size=5), prefixes, paths)
def test_adding_a_route_changes_only_the_paths_below_it(
    routes: set[str], added: str, path: str
) -> None:
    before = RouteTable({route: route for route in routes}).match(path)
    after = RouteTable({route: route for route in {*routes, added}}).match(path)
    assert after == before or is_below(path, added)


@given(prefixes, paths)
def test_a_trailing_slash_of_a_prefix_means_nothing(prefix: str, path: str) -> None:
    with_slash = prefix.rstrip("/") + "/"
    assert RouteTable({with_slash: 1}).match(path) == RouteTable({prefix: 1}).match(path)


def test_a_prefix_ends_at_a_segment() -> None:
    table = RouteTable({"/a": 1})
    assert [table.match(p) for p in ("/a", "/a/", "/a/b", "/ab", "/", "")] == [
        ("/a", 1), ("/a", 1), ("/a", 1), None, None, None,
    ]  # fmt: skip
