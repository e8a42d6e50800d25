"""What files of settings say, and which of them, the environment and an argument holds."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.settings_files import forms, user_file, written

from gpucache import configuration, environment, log
from gpucache.configuration import places, reading, toml
from gpucache.configuration.template import EXAMPLES, template
from gpucache.configuration.toml import BY_NAME, text_of, tomllib
from gpucache.environment import MAX_SIZE, ROOT, STAMP, TRUST_GROUPS, TRUST_UIDS, VARIABLES
from gpucache.store.limit import max_size_bytes

IN_FILES = [variable for variable in VARIABLES if variable.in_file]
IN_ROOT = [variable for variable in IN_FILES if variable.in_root]
ENVIRONMENT_ONLY = {"GPUCACHE_DEVICE", "GPUCACHE_FAKE_DEVICES", "GPUCACHE_RECORD", "GPUCACHE_SET"}
SOURCES = ("system", "user", "root", "environment")
OTHERS = {
    "dir": '"/b"',
    "disable": "false",
    "trust_uids": "[7]",
    "trust_groups": "[7, 8]",
    "trust_world_writable": "false",
    "fallback": '"/b"',
    "share": "false",
    "verify": '"0"',
    "require_hit": "false",
    "stall_timeout_s": "7",
    "lock_timeout_s": "7.5",
    "stamp_s": "7",
    "max_size": "4096",
    "inductor_max_size": "4096",
    "jit_max_size": "4096",
    "remember_key": "false",
    "summary": "true",
    "remote": '"file:///b"',
    "remote_timeout_s": "7",
    "log": '"debug"',
    "log_format": '"text"',
    "sign_key": '"/b.key"',
    "trust_keys": '"/b.keys"',
    "pack": '["b"]',
    "caches": '["triton"]',
    "nvml_timeout_s": "7",
}
"""Another value of each setting than the example."""


class Files:
    """A place for each file of settings, where this process looks."""

    def __init__(self, base: Path) -> None:
        self.system = base / "etc" / "gpucache.toml"
        self.home = base / "home"
        self.user = user_file(self.home)
        self.at = base / "root"
        self.root = self.at / "gpucache.toml"
        self.home.mkdir(mode=0o700)
        self.at.mkdir(mode=0o700)

    def environ(self, **more: str) -> dict[str, str]:
        return {"HOME": str(self.home), "GPUCACHE_DIR": str(self.at), **more}

    def put(self, source: str, text: str) -> Path:
        return written(getattr(self, source), text)


@pytest.fixture
def files(tmp_path, monkeypatch) -> Files:
    made = Files(tmp_path)
    monkeypatch.setattr(places, "SYSTEM_FILE", str(made.system))
    monkeypatch.setattr(log, "_warned", set())
    return made


def value(toml: str) -> object:
    return tomllib.loads(f"x = {toml}")["x"]


def as_text(variable, toml: str) -> str:
    return text_of(variable, value(toml)).replace("~", "/root")


# ---- which holds

PAIRS = list(itertools.combinations(SOURCES, 2))


@pytest.mark.parametrize(("weak", "strong"), PAIRS)
@pytest.mark.parametrize("variable", IN_FILES, ids=str)
def test_of_two_sources_the_stronger_one_holds(variable, weak, strong, files):
    if "root" in (weak, strong) and not variable.in_root:
        return
    name = variable.name_in_file
    environ = files.environ()
    if variable is ROOT:
        del environ["GPUCACHE_DIR"]
    for source, given_as in ((weak, EXAMPLES[name]), (strong, OTHERS[name])):
        if source == "environment":
            environ[variable.name] = as_text(variable, given_as)
        else:
            files.put(source, f"{name} = {given_as}\n")
    found = configuration.in_force(environ)
    assert found.problems == ()
    assert variable.read(found.environ) == variable.parse(as_text(variable, OTHERS[name]))
    assert variable.read(found.environ) != variable.parse(as_text(variable, EXAMPLES[name]))
    origin = found.origins.get(variable.name)
    assert (origin.source if origin else "environment") == strong


@pytest.mark.parametrize("source", SOURCES[:3])
@pytest.mark.parametrize("variable", IN_FILES, ids=str)
def test_each_file_is_stronger_than_the_default_and_says_where(variable, source, files):
    name = variable.name_in_file
    path = files.put(source, f"\n\n{name} = {EXAMPLES[name]}\n")
    environ = files.environ()
    if variable is ROOT and source != "root":
        del environ["GPUCACHE_DIR"]
    found = configuration.in_force(environ)
    if source == "root" and not variable.in_root:
        assert found.origins == {}
        (problem,) = found.problems
        assert (problem.path, problem.number) == (str(path), 3)
        assert variable.name in problem.fix
        return
    assert variable.read(found.environ) == variable.parse(
        text_of(variable, value(EXAMPLES[name])).replace("~", str(files.home))
    )
    assert str(found.origins[variable.name]) == f"{path}:3"


def test_a_root_may_decide_what_bounds_it_and_nothing_else():
    assert {variable.name for variable in IN_ROOT} == {
        "GPUCACHE_MAX_SIZE",
        "GPUCACHE_INDUCTOR_MAX_SIZE",
        "GPUCACHE_JIT_MAX_SIZE",
        "GPUCACHE_STAMP_S",
        "GPUCACHE_LOG_FORMAT",
    }


def test_what_only_the_environment_has_is_decided_for_each_variable():
    ours = {variable.name for variable in VARIABLES if variable.name.startswith("GPUCACHE_")}
    assert ours - {variable.name for variable in IN_FILES} == ENVIRONMENT_ONLY


def test_without_a_file_the_environment_comes_back_itself(files):
    environ = files.environ()
    assert configuration.environ(environ) is environ


def test_an_empty_variable_is_unset_so_that_the_file_holds(files):
    files.put("user", 'max_size = "3GiB"\n')
    merged = configuration.environ(files.environ(GPUCACHE_MAX_SIZE=""))
    assert MAX_SIZE.read(merged) == 3 * 2**30


def test_the_root_is_the_arguments_else_the_environments_else_the_users_else_the_systems(
    files, tmp_path
):
    roots = {}
    for name in ("argument", "environment", "user", "system"):
        roots[name] = tmp_path / name
        written(roots[name] / "gpucache.toml", f"stamp_s = {len(roots)}\n")
    files.put("system", f'dir = "{roots["system"]}"\n')
    environ = {"HOME": str(files.home)}
    assert STAMP.read(configuration.environ(environ)) == 4
    files.put("user", f'dir = "{roots["user"]}"\n')
    assert STAMP.read(configuration.environ(environ)) == 3
    environ["GPUCACHE_DIR"] = str(roots["environment"])
    assert STAMP.read(configuration.environ(environ)) == 2
    assert STAMP.read(configuration.environ(environ, roots["argument"])) == 1


def test_what_others_get_has_nothing_of_the_files(files):
    files.put("user", "stamp_s = 5\n")
    environ = files.environ()
    merged = configuration.environ(environ)
    assert merged["GPUCACHE_STAMP_S"] == "5"
    assert configuration.for_child(merged) is environ
    changed = configuration.changeable(environ)
    changed["GPUCACHE_DIR"] = "/elsewhere"
    assert configuration.environ(changed) is changed
    assert environ == files.environ()


def test_a_home_in_a_path_is_that_of_the_user(files):
    files.put("system", 'sign_key = "~/ci.key"\ntrust_keys = "~/all.keys"\n')
    merged = configuration.environ(files.environ())
    assert merged["GPUCACHE_SIGN_KEY"] == f"{files.home}/ci.key"
    assert merged["GPUCACHE_TRUST_KEYS"] == f"{files.home}/all.keys"


# ---- for all who use a root


def test_the_limit_of_a_root_is_what_its_file_says_whatever_one_process_asks_for(files):
    files.put("root", 'max_size = "20GiB"\n')
    for asked in ("1GiB", "90GiB", "0", "lots"):
        environ = configuration.environ(files.environ(GPUCACHE_MAX_SIZE=asked))
        assert max_size_bytes(str(files.at), environ) == 20 * 2**30
    files.put("root", 'max_size = "0"\n')
    assert max_size_bytes(str(files.at), files.environ(GPUCACHE_MAX_SIZE="1GiB")) == 0


# ---- values

BAD_VALUES = {
    "max_size": ['"lots"', "true", "[1]", "-1", "2026-11-26", "{a = 1}"],
    "stamp_s": ['"soon"', "nan", "-1", "inf", "true", "[300]"],
    "trust_uids": ['["me"]', "[true]", '["1,2"]', "-1", "[1.5]", "[[1]]"],
    "trust_world_writable": ['"yes"', "2", "1.0", "[]"],
    "dir": ['"kernels"', '"./kernels"', '""', '" "', '"/a\\u0000b"', "5", '"~other/x"'],
    "fallback": ['"kernels"', "7"],
    "sign_key": ['"gpucache-secret-key:ci:PN94B0"', "1"],
    "trust_keys": ['"../keys"', "[1.5]"],
    "remote": ['"bucket"', "7"],
    "log": ['"loud"', "1"],
    "log_format": ['"xml"', "true"],
    "share": ['"perhaps"'],
}
BAD = [(name, toml) for name, values in BAD_VALUES.items() for toml in values]


@pytest.mark.parametrize(("name", "toml"), BAD, ids=lambda text: text.replace("/", "|"))
def test_a_bad_value_is_the_default_of_that_setting_alone_told_with_its_line(name, toml, files):
    other = "nvml_timeout_s"
    path = files.put("user", f"{other} = 7\n{name} = {toml}\n")
    environ = {"HOME": str(files.home)}
    found = configuration.in_force(environ)
    (problem,) = found.problems
    assert problem.where == f"{path}:2"
    assert name in problem.fact
    assert "PN94B0" not in str(problem)
    variable = BY_NAME[name]
    assert variable.read(found.environ) == variable.default
    assert found.environ["GPUCACHE_NVML_TIMEOUT_S"] == "7"


def test_a_group_that_is_made_later_is_a_group_then(files, monkeypatch):
    """Which names are groups is no fact of the file, so that what was parsed without them is not kept."""
    files.put("user", 'trust_groups = ["kernels"]\n')
    (problem,) = configuration.in_force(files.environ()).problems
    assert "kernels" in problem.fact
    assert not forms(files.home).exists()
    with monkeypatch.context() as patch:
        patch.setattr(environment, "_gid", lambda name: 4321)
        found = configuration.in_force(files.environ())
        assert TRUST_GROUPS.read(found.environ) == {4321}
    assert found.problems == ()
    assert forms(files.home).exists()
    # The group is gone, and with that no command fails.
    monkeypatch.setattr(reading, "_known", {})
    found = configuration.in_force(files.environ())
    assert TRUST_GROUPS.read(found.environ) == frozenset()
    assert "kernels" in found.problems[0].fact


def test_a_bad_value_hides_what_a_weaker_file_says(files):
    """Else a slip of the pen would give the user what the system says, told as the default."""
    files.put("system", "trust_uids = [1000]\n")
    files.put("user", 'trust_uids = ["ada"]\n')
    assert TRUST_UIDS.read(configuration.environ(files.environ())) == frozenset()


@given(st.binary(max_size=400))
def test_no_bytes_make_a_parse_fail(content):
    toml.parse("user", "/x", content)


TOML_VALUES = st.one_of(
    st.text(max_size=20).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.integers().map(str),
    st.floats().map(lambda number: repr(number)),
    st.sampled_from(
        [
            "true",
            "0x" + "f" * 9000,
            "1e999",
            "2026-11-26T08:00:00Z",
            "{a = {b = [1]}}",
            "[" * 300 + "]" * 300,
            "[['a'], [1]]",
            "''",
            "['gpucache-secret-key:ci:PN94B0']",
            "['ci:" + "k" * 43 + "']",
        ]
    ),
)


@given(st.sampled_from(sorted(BY_NAME)), TOML_VALUES)
def test_no_value_of_any_setting_makes_a_parse_fail_or_shows_a_secret(name, written_as):
    content = f"{name} = {written_as}\n".encode("utf-8", "surrogatepass")
    parsed = toml.parse("user", "/x", content)
    for problem in parsed.problems:
        assert len(str(problem)) < 1000
        if name == "sign_key":
            assert "PN94B0" not in str(problem)
            assert "k" * 43 not in str(problem)
    for variable, line in parsed.lines.items():
        if line.text:
            assert BY_NAME[name].parse(line.text) is not NotImplemented
            assert variable == BY_NAME[name].name


def test_an_unknown_name_is_told_with_its_line_and_the_nearest(files):
    text = '# sizes\nmax_sise = "1GiB"\nGPUCACHE_STAMP_S = 7\nxyzzy = 1\n[tool]\na = 1\n'
    path = files.put("user", text)
    said = [str(problem) for problem in configuration.in_force(files.environ()).problems]
    assert said == [
        f"{path}:2: 'max_sise' is no setting; max_size may be meant",
        f"{path}:3: 'GPUCACHE_STAMP_S' is no setting; stamp_s may be meant",
        f"{path}:4: 'xyzzy' is no setting; `gpucache config` lists all that there are",
        f"{path}:5: 'tool' is a table, and settings are in none; write each as NAME = VALUE",
    ]


def test_of_thousands_of_names_that_are_none_a_few_are_told_and_none_is_searched_for(
    files, monkeypatch
):
    searched = []
    line_of = toml.line_of
    monkeypatch.setattr(toml, "line_of", lambda *words: searched.append(1) or line_of(*words))
    names = "".join(f"x{number} = 1\n" for number in range(5000))
    files.put("user", f"{names}stamp_s = 7\n")
    found = configuration.in_force(files.environ())
    assert len(found.problems) == 20
    assert len(searched) == 21
    assert found.environ["GPUCACHE_STAMP_S"] == "7"


@pytest.mark.parametrize("name", ["device", "set", "record", "fake_devices"])
def test_what_is_one_processs_own_is_told_to_be_the_environments(name, files):
    files.put("user", f'{name} = "x"\n')
    (problem,) = configuration.in_force(files.environ()).problems
    assert problem.fix == f"only the environment has it, as GPUCACHE_{name.upper()}"


@pytest.mark.parametrize(
    "before",
    [
        'remote = """\nfile:///a\nmax_size = 1\n"""\n',
        "pack = [\n  'max_size', # max_size = 2\n  'b',\n]\n",
        "# max_size = 3\n",
        "'disable' = false\n",
        "",
    ],
    ids=["text of lines", "list of lines", "comment", "quoted name", "nothing"],
)
@pytest.mark.parametrize("name", ["max_size", '"max_size"', "'max_size'", "  max_size"])
def test_the_line_is_that_of_the_setting_and_of_nothing_that_looks_like_it(name, before, files):
    path = files.put("user", f"{before}{name} = 4\n")
    origin = configuration.in_force(files.environ()).origins["GPUCACHE_MAX_SIZE"]
    assert str(origin) == f"{path}:{before.count(chr(10)) + 1}"


def test_of_a_thousand_lines_that_look_alike_no_line_is_told_and_nothing_hangs(files):
    look = "max_size = 1\n" * 1000
    files.put("user", f'remote = """\n{look}"""\nmax_size = 4\n')
    origin = configuration.in_force(files.environ()).origins["GPUCACHE_MAX_SIZE"]
    assert origin.number is None


# ---- a file to begin with, and the page


@pytest.mark.parametrize("source", ["user", "root"])
def test_a_file_to_begin_with_has_every_setting_that_it_may_hold_and_sets_none(source, files):
    text = template(source)
    files.put(source, text)
    found = configuration.in_force(files.environ())
    assert (found.origins, found.problems) == ({}, ())
    uncommented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    files.put(source, uncommented)
    configuration.reading._known.clear()
    environ = {"HOME": str(files.home), "GPUCACHE_DIR": str(files.at)}
    found = configuration.in_force(environ)
    assert found.problems == ()
    expected = IN_ROOT if source == "root" else IN_FILES
    names = {variable.name for variable in expected} - {"GPUCACHE_DIR"}
    assert set(found.origins) == names


def test_the_examples_and_their_others_are_of_all_settings():
    names = {variable.name_in_file for variable in IN_FILES}
    assert set(EXAMPLES) == set(OTHERS) == names


def test_the_page_has_every_setting_its_value_and_whether_a_root_may_hold_it():
    page = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+) = (.+?)` \| (root|) ?\| (.+) \|$", page, re.MULTILINE)
    told = {name: (toml, mark == "root", meaning) for name, toml, mark, meaning in rows}
    expected = {}
    for variable in IN_FILES:
        name = variable.name_in_file
        expected[name] = (EXAMPLES[name], variable.in_root, f"`{variable.name}`")
    assert told == expected


def test_the_environment_of_this_process_is_the_default(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files.home))
    files.put("user", "stamp_s = 9\n")
    assert configuration.environ()["GPUCACHE_STAMP_S"] == "9"
    assert "GPUCACHE_STAMP_S" not in os.environ
