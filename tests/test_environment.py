"""Every variable of the table, with values that make no sense: no launch fails, and no command takes one in silence."""

from __future__ import annotations

from contextlib import suppress

import pytest

from gpucache import DeviceCacheRegistry, log
from gpucache.environment import (
    CACHES,
    DISABLE,
    PACK,
    TRUST_GROUPS,
    TRUST_UIDS,
    TRUST_WORLD_WRITABLE,
    VARIABLES,
)
from gpucache.errors import ConfigurationError, GpuCacheError
from gpucache.triton.location import locate

NONSENSE = {
    "blanks": "   ",
    "a word": "lots",
    "negative": "-1",
    "five thousand digits": "9" * 5000,
    "five thousand letters": "x" * 5000,
    "NaN": "nan",
    "infinite": "inf",
    "as good as infinite": "1e308",
    "bytes that are no UTF-8": "\udcff\udcfe",
    "controls": "\x1b[2J\t\n\r",
}
OURS = [variable for variable in VARIABLES if variable.name.startswith("GPUCACHE_")]
IN_ENVIRONMENT = pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch):
    monkeypatch.setattr(log, "_warned", set())


def makes_sense(variable, text):
    """Whether the text is a value all the same: any text is a path or a UUID, and blanks are a list of no users."""
    paths = ("DIR", "FALLBACK", "RECORD", "SIGN_KEY", "TRUST_KEYS")
    is_path = variable.name.removeprefix("GPUCACHE_") in paths and text.strip() != ""
    is_empty_list = variable in (TRUST_UIDS, TRUST_GROUPS) and text.strip() == ""
    is_name = variable is PACK and text in ("lots", "nan", "inf", "1e308")
    is_name |= variable is CACHES and text.strip() != ""
    return (
        is_path or is_name or is_empty_list or variable.name in ("GPUCACHE_DEVICE", "GPUCACHE_SET")
    )


@IN_ENVIRONMENT
@pytest.mark.parametrize("variable", OURS, ids=str)
def test_nonsense_is_the_default_told_once(variable, text, caplog):
    """To a launch; and to a command an error that names variable and value, and is no page long."""
    environ = {variable.name: text}
    if makes_sense(variable, text):
        variable.read(environ)
        return
    assert [variable.read_or_default(environ) for _ in range(2)] == [variable.default] * 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{variable.name}=")
    with pytest.raises(ConfigurationError) as refused:
        variable.read(environ)
    assert refused.value.problem.startswith(f"{variable.name}=")
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("variable", OURS, ids=str)
def test_an_empty_variable_is_an_unset_one(variable, caplog):
    assert variable.read({variable.name: ""}) == variable.read({}) == variable.default
    assert not caplog.records


@IN_ENVIRONMENT
def test_what_makes_no_sense_extends_no_trust_and_disables_nothing(text):
    for variable in (TRUST_UIDS, TRUST_WORLD_WRITABLE, DISABLE):
        assert not variable.read_or_default({variable.name: text})


@IN_ENVIRONMENT
@pytest.mark.parametrize("variable", VARIABLES, ids=str)
def test_no_value_of_any_variable_is_an_exception_out_of_a_launch(
    variable, text, root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    environ = {"GPUCACHE_DIR": str(root), variable.name: text}
    found = locate(environ.get("TRITON_CACHE_DIR"), environ)
    assert found.stall_s >= 0
    assert found.limit.grace_s < 1e10


@IN_ENVIRONMENT
@pytest.mark.parametrize("variable", VARIABLES, ids=str)
def test_no_value_of_any_variable_is_another_exception_than_ours(
    variable, text, root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    environ = {"GPUCACHE_DIR": str(root), "GPUCACHE_FAKE_DEVICES": "1", variable.name: text}
    with suppress(GpuCacheError):
        registry = DeviceCacheRegistry(environ=environ)
        registry.provision()
        DeviceCacheRegistry.load(environ=environ)


def test_a_root_with_a_nul_is_refused_as_a_setting():
    with pytest.raises(ConfigurationError, match="it has a NUL"):
        DeviceCacheRegistry("/a\0b", environ={"GPUCACHE_FAKE_DEVICES": "1"})
