from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remora.cli.errors import CommandError, UsageError
from remora.cli.reload import forget_modules
from remora.cli.target import Target, load, parse_arguments, parse_target

SERVER = """
from dataclasses import dataclass
from typing import TypedDict

from pydantic import BaseModel

from remora.deployment import deployment


@deployment
class Greeter:
    def __init__(self, greeting="hello"):
        self.greeting = greeting


app = Greeter.bind()
number = 5


class Apps:
    inner = Greeter.bind("inner")


class Model(BaseModel):
    greeting: str
    times: int = 1


@dataclass
class Plain:
    greeting: str
    times: int = 1


class Typed(TypedDict):
    times: int


seen = []


def build(args):
    seen.append(args)
    return Greeter.bind(args["greeting"])


def build_model(args: Model):
    seen.append(args)
    return Greeter.bind(args.greeting)


def build_dataclass(args: Plain):
    seen.append(args)
    return Greeter.bind(args.greeting)


def build_typed(args: Typed):
    seen.append(args)
    return Greeter.bind()


def build_two(a, b):
    return Greeter.bind()


def build_wrong(args):
    return Greeter


def build_failing(args):
    return 1 / 0
"""


@pytest.fixture
def app_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "cli_server.py").write_text(SERVER)
    yield tmp_path
    forget_modules(tmp_path)


def load_text(text: str, app_dir: Path, *pairs: str) -> str:
    return repr(load(parse_target(text), parse_arguments(pairs), app_dir))


@pytest.mark.parametrize(
    ("text", "module", "attribute"),
    [
        ("server:app", "server", "app"),
        ("pkg.server:app", "pkg.server", "app"),
        ("pkg.server.app", "pkg.server", "app"),
        ("server:Apps.inner", "server", "Apps.inner"),
    ],
)
def test_reads_where_an_application_is(text: str, module: str, attribute: str) -> None:
    assert parse_target(text) == Target(module, attribute)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("server", "does not say which application"),
        ("server:", "does not say which application"),
        (":app", "does not say which application"),
        ("a:b:c", "more than one colon"),
        ("serve.yaml", "config file"),
        ("server.py", "remora run server:app"),
        ("models/server.py:main", "remora run -d models server:main"),
        ("ser ver:app", "is not a name"),
        ("server:app()", "is not a name"),
    ],
)
def test_says_how_to_name_an_application(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        parse_target(text)
    assert hint in caught.value.message
    assert caught.value.status == 2


def test_values_may_be_empty_and_hold_equal_signs() -> None:
    assert parse_arguments(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


@pytest.mark.parametrize("word", ["novalue", "=x", " =x"])
def test_refuses_a_word_that_is_no_argument(word: str) -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_arguments([word])


def test_refuses_an_argument_given_twice() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_arguments(["a=1", "a=2"])


@pytest.mark.parametrize("text", ["cli_server:app", "cli_server.app", "cli_server:Apps.inner"])
def test_finds_an_application(text: str, app_dir: Path) -> None:
    assert load_text(text, app_dir) == "Application('Greeter')"


def test_a_builder_gets_the_arguments_as_a_dict(app_dir: Path) -> None:
    load_text("cli_server:build", app_dir, "greeting=hi")
    assert sys.modules["cli_server"].seen == [{"greeting": "hi"}]


@pytest.mark.parametrize("builder", ["build_model", "build_dataclass"])
def test_a_typed_builder_gets_its_type(builder: str, app_dir: Path) -> None:
    load_text(f"cli_server:{builder}", app_dir, "greeting=hi", "times=3")
    (seen,) = sys.modules["cli_server"].seen
    assert (seen.greeting, seen.times) == ("hi", 3)


def test_a_typed_dict_gets_its_types(app_dir: Path) -> None:
    load_text("cli_server:build_typed", app_dir, "times=3")
    assert sys.modules["cli_server"].seen == [{"times": 3}]


@pytest.mark.parametrize(
    ("text", "pairs", "hint"),
    [
        ("cli_serve:app", (), "Did you mean 'cli_server'?"),
        ("cli_server.sub:app", (), "There is no module 'cli_server.sub'"),
        ("cli_server:ap", (), "Did you mean 'app'?"),
        ("cli_server:zzz", (), "It has the application 'app': run cli_server:app."),
        ("cli_server:Greeter", (), "app = Greeter.bind()"),
        ("cli_server:number", (), "is an object of type int, not an application"),
        ("cli_server:Apps", (), "is the class Apps, not an application"),
        ("cli_server:app", ("a=b",), "takes no arguments, but got a"),
        ("cli_server:build_two", (), "takes 2 parameters"),
        ("cli_server:build_wrong", (), "returned an object of type Deployment, not an application"),
        ("cli_server:build_model", ("times=3",), "greeting"),
        ("cli_server:build_dataclass", ("greeting=hi", "times=x"), "times"),
    ],
)
def test_says_what_is_wrong_and_what_to_do(
    text: str, pairs: tuple[str, ...], hint: str, app_dir: Path
) -> None:
    with pytest.raises(CommandError) as caught:
        load_text(text, app_dir, *pairs)
    assert hint in caught.value.message
    assert caught.value.user_traceback == ""


def test_a_broken_module_shows_the_users_traceback_and_nothing_of_ours(app_dir: Path) -> None:
    (app_dir / "cli_broken.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(CommandError) as caught:
        load_text("cli_broken:app", app_dir)
    trace = caught.value.user_traceback
    assert "cli_broken.py" in trace
    assert trace.endswith("ModuleNotFoundError: No module named 'nowhere_to_be_found'")
    assert "target.py" not in trace
    assert "importlib" not in trace


def test_a_module_that_exits_is_an_error(app_dir: Path) -> None:
    (app_dir / "cli_exits.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(CommandError, match="could not be imported"):
        load_text("cli_exits:app", app_dir)


def test_a_failing_builder_shows_the_users_traceback(app_dir: Path) -> None:
    with pytest.raises(CommandError) as caught:
        load_text("cli_server:build_failing", app_dir, "a=b")
    assert caught.value.user_traceback.count("ZeroDivisionError") == 1
    assert "target.py" not in caught.value.user_traceback
