"""`gpucache.store.stamping`: a use is stamped also where the mount sets no times."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.trees import OLD, Tree, set_used, used

from gpucache.store.lookup import sound
from gpucache.store.manifest import CONDEMNED, MANIFEST
from gpucache.store.stamping import written_anew

Utime = Callable[..., None]


def refuse(code: int) -> Utime:
    def utime(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return utime


def ignore(*_: Any, **__: Any) -> None:
    """As a mount that says it did what it did not."""


REFUSALS = {
    **{errno.errorcode[code]: refuse(code) for code in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP)},
    "to no effect": ignore,
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    set_used(tree.view, OLD)
    return tree


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_use_is_stamped_by_a_new_manifest(
    kind: str, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "utime", REFUSALS[kind])
    before = time.time() - 1  # file times are the tick's
    assert sound(str(tree.view), False, 0.0)
    assert used(tree.view) >= before
    inode = (tree.view / MANIFEST).stat().st_ino
    assert sound(str(tree.view), False, 0.0)
    assert (tree.view / MANIFEST).stat().st_ino == inode, "not before five minutes are over"
    assert tree.whole(tree.view)
    assert not tree.left()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_where_this_user_may_not_write_an_entry_looks_old_and_is_used(
    code: int, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "utime", refuse(code))
    assert sound(str(tree.view), False, 0.0)
    assert used(tree.view) == OLD


def test_what_another_user_has_published_is_not_written_anew(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "utime", refuse(errno.EPERM))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert sound(str(tree.view), False, 0.0)
    assert used(tree.view) == OLD


def test_a_removal_that_was_faster_goes_on_and_the_reader_misses(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def condemned_before(source: str, target: str) -> None:
        os.rename(tree.view / MANIFEST, tree.view / CONDEMNED)
        replace(source, target)

    monkeypatch.setattr(os, "utime", refuse(errno.EPERM))
    monkeypatch.setattr(os, "replace", condemned_before)
    assert sound(str(tree.view), False, 0.0) is None


def test_a_reader_whose_manifest_was_hidden_before_its_stamp_shows_nothing_again(
    tree: Tree,
) -> None:
    manifest = sound(str(tree.view), False, 0.0)
    assert manifest is not None
    os.rename(tree.view / MANIFEST, tree.view / CONDEMNED)
    assert not written_anew(str(tree.view), manifest)
    assert not (tree.view / MANIFEST).exists()
