"""`gpucache.disk.capabilities`: what a mount can do is tried, and kept for each node."""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpucache.disk import capabilities
from gpucache.disk.capabilities import Capabilities, is_refusal, known, learn, probe
from gpucache.values import replace

ALL = Capabilities(renames_directories=True, hard_links=True, sets_times=True, flocks=True)
REFUSALS = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMFILE, errno.EINVAL]


@pytest.fixture
def made(root: Path) -> Path:
    (root / "gpucache" / "v1" / "tmp").mkdir(parents=True)
    return root


def refuse(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, code: int) -> None:
    """Let a function of the operating system answer with an error."""

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, refused)


def test_a_local_disk_can_do_all_and_nothing_is_left_of_the_trial(tmp_path: Path) -> None:
    assert probe(str(tmp_path)) == ALL
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", REFUSALS)
def test_each_thing_that_is_refused_is_told_and_the_others_are_tried_all_the_same(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, field in (
        (os, "rename", "renames_directories"),
        (os, "link", "hard_links"),
        (os, "utime", "sets_times"),
        (fcntl, "flock", "flocks"),
    ):
        with monkeypatch.context() as patch:
            refuse(patch, module, name, code)
            assert probe(str(tmp_path)) == replace(ALL, **{field: False})
    assert not list(tmp_path.iterdir())


def test_a_lock_that_keeps_nobody_out_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert not probe(str(tmp_path)).flocks


def test_a_time_that_is_set_to_no_effect_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "utime", lambda *_: None)
    assert not probe(str(tmp_path)).sets_times


def test_what_was_found_is_kept_and_not_tried_again_until_that_is_asked_for(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known(str(made)) is None
    with monkeypatch.context() as patch:
        refuse(patch, os, "link", errno.EPERM)
        found = learn(str(made))
    assert found == replace(ALL, hard_links=False)
    assert known(str(made)) == found
    assert learn(str(made)) == found
    assert learn(str(made), again=True) == ALL
    assert known(str(made)) == ALL


def test_what_another_node_found_is_not_believed(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(str(made))
    monkeypatch.setattr(capabilities, "node_id", lambda: "0badcafe")
    assert known(str(made)) is None


@pytest.mark.parametrize(
    "damage",
    [{"version": 2}, {"mount": [1, 2]}, {"flocks": "yes"}, {"flies": True}, None],
)
def test_what_is_of_another_mount_or_makes_no_sense_is_not_believed(
    damage: dict[str, object] | None, made: Path
) -> None:
    learn(str(made))
    (path,) = (made / "gpucache" / "v1" / "mounts").iterdir()
    said = json.loads(path.read_text())
    path.write_text("[1" if damage is None else json.dumps(said | damage))
    assert known(str(made)) is None
    assert learn(str(made)) == ALL
    assert known(str(made)) == ALL


def test_what_was_found_before_many_starts_is_forgotten(made: Path) -> None:
    mounts = made / "gpucache" / "v1" / "mounts"
    mounts.mkdir()
    for name, age_s in (("00000001.json", 100 * 86400), ("00000002.json", 80 * 86400)):
        (mounts / name).write_text("{}")
        then = (mounts / name).stat().st_mtime - age_s
        os.utime(mounts / name, (then, then))
    learn(str(made))
    assert "00000001.json" not in os.listdir(mounts)
    assert len(os.listdir(mounts)) == 2


def test_where_nothing_can_be_made_nothing_is_known_and_nothing_raised(root: Path) -> None:
    assert learn(str(root)) is None


def test_a_full_or_read_only_disk_refuses_no_way_in_particular() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.ESTALE):
        assert not is_refusal(OSError(code, ""))
    for code in REFUSALS:
        assert is_refusal(OSError(code, ""))


def test_what_is_old_is_removed_behind_no_link(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "gpucache/v1/tmp").mkdir(parents=True)
    (elsewhere / "letters.json").write_text("of years ago")
    os.utime(elsewhere / "letters.json", (1, 1))
    (root / "gpucache/v1/mounts").symlink_to(elsewhere)
    learn(str(root), again=True)
    assert (elsewhere / "letters.json").exists()
    (root / "gpucache/v1/mounts").unlink()
    elsewhere.rename(root / "gpucache/v1/mounts")
    learn(str(root), again=True)
    assert len(os.listdir(root / "gpucache/v1/mounts")) == 1


def test_where_the_file_cannot_be_opened_again_it_cannot_be_locked(tmp_path, monkeypatch):
    refused = OSError(errno.ENOTCONN, "not connected")

    def no_second_opening(path, flags, *mode, **options):
        if str(path).endswith("/file") and not flags & os.O_CREAT:
            raise refused
        return opening(path, flags, *mode, **options)

    opening = os.open
    monkeypatch.setattr(os, "open", no_second_opening)
    assert not probe(str(tmp_path)).flocks
    assert list(tmp_path.iterdir()) == []
