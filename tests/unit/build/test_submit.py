"""Where an application of a config is imported from, and what of it is pinned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from remora.build.pinning import beside
from remora.build.submit import config_request
from remora.config_file.declaration import parse
from remora.errors import ConfigFileError
from remora.options.resources import RuntimeEnv
from remora.wire.control import DeclaredApplication, Surroundings

PLACE = Surroundings(sys_path=("/somewhere",), cwd="/somewhere")


def declared(base: Path | None, **runtime_env: Any) -> DeclaredApplication:
    config = parse({"applications": [{"import_path": "a:b", "runtime_env": runtime_env}]})
    (made,) = config_request(config, "test", place=PLACE, base=base).applications
    return made


def test_without_a_folder_of_its_own_it_is_where_the_command_was(tmp_path: Path) -> None:
    made = declared(tmp_path, env_vars={"A": "b"})
    assert made.surroundings == PLACE
    assert made.env == {"A": "b"}
    assert made.runtime_env == RuntimeEnv()


def test_a_folder_is_relative_to_the_file_and_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("b = 1\n")
    first = declared(tmp_path, working_dir="code")
    assert first.surroundings == Surroundings()
    assert first.runtime_env.working_dir == str(tmp_path / "code")
    assert declared(tmp_path, working_dir="code") == first
    (tmp_path / "code" / "a.py").write_text("b = 2\n")
    assert declared(tmp_path, working_dir="code").runtime_env.digests != first.runtime_env.digests


def test_without_a_file_paths_are_absolute(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match="must be an absolute path"):
        declared(None, working_dir="code")
    assert declared(None, working_dir=str(tmp_path)).runtime_env.working_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("given", "where", "said"),
    [
        ({"working_dir": "none"}, "working_dir", "is neither a folder nor a file"),
        ({"working_dir": "x\0y"}, "working_dir", "is neither a folder nor a file"),
        ({"working_dir": "~nobody-of-that-name"}, "working_dir", "home directory"),
        ({"py_modules": [".", "none"]}, "py_modules[1]", "is neither a folder nor a file"),
        ({"pip": "none.txt"}, "pip", "No such file"),
    ],
)
def test_what_is_not_there_is_refused_with_its_place(
    given: dict[str, Any], where: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigFileError) as caught:
        declared(tmp_path, **given)
    (problem,) = caught.value.problems
    assert problem.startswith(f"applications[0].runtime_env.{where}: ")
    assert said in problem


def test_a_relative_path_without_a_file_is_refused_with_its_place() -> None:
    for key, given in (("working_dir", "code"), ("py_modules[0]", ["code"])):
        with pytest.raises(ConfigFileError) as caught:
            declared(None, **{key.partition("[")[0]: given})
        assert str(caught.value).startswith(
            f"applications[0].runtime_env.{key}: 'code' is not allowed: must be an absolute path"
        )


def test_what_a_deployment_has_of_its_own_goes_first_and_the_rest_is_filled_in() -> None:
    own = RuntimeEnv(working_dir="/own", packages=("a",), digests=("1",))
    others = RuntimeEnv(
        working_dir="/theirs", py_modules=("/m",), packages=("b",), digests=("2", "3")
    )
    assert beside(own, others) == RuntimeEnv(
        working_dir="/own",
        py_modules=("/m",),
        packages=("a",),
        digests=("1", "3"),
        excluded=((), ()),
    )
    # What each leaves out stays with what it names.
    own = msgspec.structs.replace(own, excludes=("*.bin",), excluded=(("*.bin",),))
    assert beside(own, others).excluded == (("*.bin",), ())
    assert beside(RuntimeEnv(), others) == others
    assert beside(own, RuntimeEnv()) == own
