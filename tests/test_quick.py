"""The two parsers of the command line, `gpucache.cli.quick` and click's, read what both know alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucache.cli import quick
from gpucache.cli.commands import run_with_click
from gpucache.cli.path_and_env import EnvCall, PathCall
from gpucache.cli.run import RunCall

OPTIONS = [
    "--root",
    "--device",
    "--format",
    "--strict",
    "--no-strict",
    "--force",
    "--plugin",
    "--no-plugin",
]
WITH_VALUES = ["--record", "--warm", "--jobs", "--caches"]
OTHERS = ["--json", "--help", "-h", "--version", "--", "-", "", "-1", "--roo", "-r", "--strict=1"]
VALUES = ["0", "7", "007", "1_0", " 1", "+1", "\u0663", "9" * 9, "9" * 10, "sh", "fish", "dotenv"]
VALUES += ["all", "warp,jax", "wrap", "json", "SH", "true", "/a/b", "a=b", "path", "\udcff"]
word = st.one_of(
    st.sampled_from([*OPTIONS, *WITH_VALUES]),
    st.sampled_from(VALUES),
    st.sampled_from(OTHERS),
    st.builds(
        "{}={}".format,
        st.sampled_from([*OPTIONS[:3], *WITH_VALUES]),
        st.sampled_from([*VALUES, "", "-1"]),
    ),
    st.text(st.characters(exclude_characters="\0"), max_size=4),
)
# Close to what is right, so that many are: a command, options of its own with values, and then anything.
option = st.one_of(
    st.tuples(st.sampled_from([*OPTIONS[:3], *WITH_VALUES]), st.sampled_from(VALUES)),
    st.tuples(st.sampled_from(OPTIONS[3:])),
    st.tuples(st.sampled_from(VALUES[:3])),
)
near = st.lists(option, max_size=4).map(lambda options: [word for some in options for word in some])
command_lines = st.builds(
    lambda command, known, some: [command, *known, *some],
    st.sampled_from(["path", "env", "run"]),
    near,
    st.lists(word, max_size=4),
)


def read_by_click(words: list[str]) -> object:
    """The call that click makes of the words; None where it makes none."""
    made: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        for call in (PathCall, EnvCall, RunCall):
            patch.setattr(call, "execute", lambda self: made.append(self) or 0)
        run_with_click(words)
    return made[0] if made else None


@given(command_lines)
def test_what_quick_reads_click_reads_alike(words):
    call = quick.read(words, {})
    if call is not None:
        assert read_by_click(words) == call


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["path", "0"], PathCall(device=0)),
        (["path", "--root=/r", "12"], PathCall(device=12, root="/r")),
        (["env", "--format", "fish", "1"], EnvCall(device=1, form="fish")),
        (["path", "GPU-8a56"], PathCall(device="GPU-8a56")),
        (["env", "MIG-1"], EnvCall(device="MIG-1")),
        (["run", "--device=FAKE-1", "a"], RunCall(command=("a",), device="FAKE-1")),
        (["run", "a", "--root", "--"], RunCall(command=("a", "--root", "--"))),
        (["run", "--", "--strict"], RunCall(command=("--strict",))),
        (["run", "--caches", "warp,jax", "a"], RunCall(command=("a",), caches=("warp", "jax"))),
        (["env", "--caches=all", "0"], EnvCall(device=0, caches=("all",))),
        (["run", "--plugin", "--no-plugin", "a"], RunCall(command=("a",), plugin=False)),
        (["run", "--device", "3", "--force", "--strict", "--plugin", "--root", "r", "--", "a"],
         RunCall(command=("a",), device=3, root="r", strict=True, force=True, plugin=True)),
        (["run", "--warm", "auto", "--jobs=2", "--record", "f", "a"],
         RunCall(command=("a",), warm="auto", jobs=2, record="f")),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)  # fmt: skip
def test_the_usual_forms_are_read_without_click(words, call):
    assert quick.read(words, {}) == read_by_click(words) == call


@pytest.mark.parametrize(
    "words",
    [
        *(
            [],
            ["ls"],
            ["--help"],
            ["path"],
            ["path", "-1"],
            ["path", "0", "1"],
            ["path", "--", "0"],
        ),
        *(["path", "0", "--json"], ["path", "0", "--strict"], ["path", "0", "--root", "-x"]),
        *(
            ["path", "0", "--root", ""],
            ["run", "--root=", "a"],
            ["run", "--root= ", "a"],
            ["run", "--root=-x", "a"],
        ),
        *(
            ["env", "0", "--format", "json"],
            ["env", "0", "--format", "zsh"],
            ["env", "0", "--form=sh"],
        ),
        *(["run", "--jobs", "2", "a"], ["run", "--warm", "f", "--jobs", "0", "a"]),
        *(
            ["run", "--warm", "", "a"],
            ["run", "--record", "-", "a"],
            ["run", "--warm", "f", "-j", "2", "a"],
        ),
        *(["run"], ["run", "--"], ["run", ""], ["run", "--device", "x", "a"], ["run", "--help"]),
    ],
    ids=" ".join,
)
def test_what_quick_does_not_know_is_clicks_to_read(words):
    assert quick.read(words, {}) is None


def test_completion_is_clicks():
    assert quick.read(["path", "0"], {"_GPUCACHE_COMPLETE": "bash_complete"}) is None
