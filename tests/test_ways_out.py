"""Each way that the hint of a refusal offers leads to a cache that works, and never to a second refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.containers import Image, own_disk, with_users
from support.followed import follow, hint_of, ways
from support.pods import compiled
from support.strangers import GROUPS, MALLORY, MATE, TEAM, USERS, VICTIM, Machine

ROOT = "/scratch/kernels"
OWN = "/scratch/own"


@pytest.fixture(scope="module")
def image(can_mount: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    with own_disk(tmp_path_factory.mktemp("disk")) as disk:
        yield Image(disk)


@pytest.fixture(scope="module")
def office(image: Image) -> Image:
    """A machine that knows its users and groups, as a container does not."""
    return with_users(image, USERS, GROUPS)


def with_own_directory(image: Image) -> Machine:
    made = Machine(image)
    made.act(VICTIM, f"mkdir -m 700 {OWN}")
    return made


TWICE = "gpucache run -- python /app/serve.py first second third first second third"
"""Without a root that is used each kernel would be compiled twice."""
PRIVATE = f"gpucache provision --root {ROOT}"
GROUP = f"gpucache provision --shared group --root {ROOT}"

REFUSED: dict[str, list[tuple[int, str]]] = {
    "an emptyDir": [(0, f"install -d -m 0777 {ROOT}")],
    "an emptyDir with fsGroup": [(0, f"install -d -m 2777 -g {TEAM} {ROOT}")],
    "an own directory that everybody may write": [(VICTIM, f"install -d -m 0777 {ROOT}")],
    "a directory below an emptyDir": [
        (0, f"install -d -m 0777 {ROOT}"),
        (VICTIM, f"mkdir -m 0700 {ROOT}/mine"),
    ],
    "a directory below an own one that everybody may write": [
        (VICTIM, f"install -d -m 0777 {ROOT}/mine"),
        (VICTIM, f"chmod 0777 {ROOT}; chmod 0700 {ROOT}/mine"),
    ],
    "a root of another user": [(MALLORY, f"mkdir -m 0700 {ROOT}; {PRIVATE}")],
    "a root of another user that has an open mode": [
        (MALLORY, f"mkdir -m 0755 {ROOT}; {PRIVATE}; chmod 0755 {ROOT}")
    ],
    "a root of a mate": [(MATE, f"install -d -m 0770 -g {TEAM} {ROOT}; {PRIVATE}")],
    "an empty directory of a mate": [(MATE, f"install -d -m 2770 -g {TEAM} {ROOT}")],
    "an empty directory of another user that everybody may write": [
        (MALLORY, f"mkdir {ROOT}; chmod 0777 {ROOT}")
    ],
    "something else in the place of a root": [(MALLORY, f"mkfifo {ROOT}")],
    "what an init container of root has made": [
        (0, f"install -d -m 0777 -g {TEAM} {ROOT}"),
        (0, f"GPUCACHE_TRUST_WORLD_WRITABLE=1 {PRIVATE}"),
    ],
    "the same where the program accepts an emptyDir": [
        (0, f"install -d -m 2777 -g {TEAM} {ROOT}"),
        (0, f"GPUCACHE_TRUST_WORLD_WRITABLE=1 {PRIVATE}"),
    ],
    "the same for a program that is not in the volume's group": [
        (0, f"install -d -m 0777 {ROOT}"),
        (0, f"GPUCACHE_TRUST_WORLD_WRITABLE=1 {PRIVATE}"),
    ],
    "a shared root whose group is not named": [
        (MATE, f"install -d -m 2770 -g {TEAM} {ROOT}"),
        (MATE, GROUP),
    ],
    "a shared root beside which everybody may make others of its group": [
        (0, f"chgrp {TEAM} /scratch && chmod 3777 /scratch"),
        (MATE, f"mkdir -m 0770 {ROOT}; {GROUP}"),
    ],
    "a shared root that was copied by cp -a": [
        (MATE, f"install -d -m 2770 -g {TEAM} {ROOT}"),
        (MATE, GROUP),
        (MATE, f"chmod g-s {ROOT}"),
    ],
    "the same for a program that names its group": [
        (MATE, f"install -d -m 2770 -g {TEAM} {ROOT}"),
        (MATE, GROUP),
        (MATE, f"chmod g-s {ROOT}"),
    ],
    "a shared root of a group that this user is not in": [
        (MALLORY, f"install -d -m 2770 {ROOT}; {GROUP}"),
    ],
    "a root that others may read": [
        (MATE, f"mkdir {ROOT}; gpucache provision --shared read --root {ROOT}")
    ],
    "an own root that is closed": [(VICTIM, f"mkdir {ROOT}; {PRIVATE}; chmod 0 {ROOT}")],
    "an own root with a part that is closed": [
        (
            VICTIM,
            f"mkdir {ROOT}; {PRIVATE}; chmod 0 {ROOT}/gpucache/v1",
        )
    ],
    "a directory of another user in an own root": [
        (VICTIM, f"mkdir -m 0777 {ROOT}; chmod 0777 {ROOT}"),
        (MALLORY, f"mkdir {ROOT}/triton"),
        (VICTIM, f"chmod 0700 {ROOT}"),
    ],
    "directories of another user in a root of root's": [
        (0, f"install -d -m 0777 -g {TEAM} {ROOT}"),
        (MALLORY, f"mkdir {ROOT}/triton {ROOT}/gpucache"),
        (0, f"chmod 2770 {ROOT}"),
    ],
    "what root has made in an own root": [
        (VICTIM, f"mkdir -m 0700 {ROOT}; {PRIVATE}"),
        (0, f"chown -R 0:0 {ROOT}/gpucache"),
    ],
    "a link of another user": [(MALLORY, f"ln -s {OWN} {ROOT}")],
    "a record that everybody may write": [
        (VICTIM, f"mkdir -m 0700 {ROOT}; {PRIVATE}; chmod 0666 {ROOT}/gpucache/v1/devices/*")
    ],
    "a record of another user": [
        (VICTIM, f"mkdir -m 0700 {ROOT}; {PRIVATE}"),
        (0, f"chown {MALLORY} {ROOT}/gpucache/v1/devices/*"),
    ],
    "a directory above that is closed": [
        (MALLORY, f"mkdir -m 0700 {ROOT}; mkdir {ROOT}/mine"),
    ],
}
"""What was made before the refusal: lines of shell, and who said each."""
BELOW = {name: f"{ROOT}/mine" for name in REFUSED if "below" in name or "above" in name}
ENVIRON = {
    "a shared root beside which everybody may make others of its group": {
        "GPUCACHE_TRUST_GROUPS": str(TEAM)
    },
    "the same for a program that names its group": {"GPUCACHE_TRUST_GROUPS": str(TEAM)},
    "the same where the program accepts an emptyDir": {"GPUCACHE_TRUST_WORLD_WRITABLE": "1"},
}


def refused(machine: Machine, what: str) -> tuple[dict[str, str], str]:
    """What is set, and the hint, once all is as it was before the refusal."""
    for uid, line in REFUSED[what]:
        done = machine.act(uid, line)
        assert done.returncode == 0, (line, done.stderr)
    env = {"GPUCACHE_DIR": BELOW.get(what, ROOT), **ENVIRON.get(what, {})}
    command = "gpucache path 0" if "record" in what else "gpucache provision"
    return env, hint_of(machine.act(VICTIM, command, **env))


@pytest.mark.root
@pytest.mark.mounts
@pytest.mark.parametrize("what", REFUSED)
def test_each_way_out_leads_to_a_cache_that_works(what, image):
    number = 0
    while True:  # each way from the beginning
        machine = with_own_directory(image)
        env, hint = refused(machine, what)
        offered = ways(hint)
        settings = follow(offered[number], machine.act, VICTIM, OWN)
        done = machine.act(VICTIM, TWICE, **{**env, **settings})
        assert compiled(done) == 3, (hint, number)
        remaining = [
            later for later in range(number + 1, len(offered)) if "your own" not in offered[later]
        ]
        if not remaining:
            return
        number = remaining[0]


def of_mates(image: Image) -> Machine:
    """A machine with a root that a mate shares with the team."""
    machine = with_own_directory(image)
    for uid, line in REFUSED["a shared root whose group is not named"]:
        assert machine.act(uid, line).returncode == 0
    assert (
        machine.act(MATE, f"GPUCACHE_DIR={ROOT} gpucache run -- python /app/serve.py").returncode
        == 0
    )
    return machine


@pytest.mark.root
@pytest.mark.mounts
@pytest.mark.parametrize("command", ["provision", "ls"])
def test_who_was_added_to_the_group_after_logging_in_is_told_to_log_in_again(command, office):
    machine = of_mates(office)
    before = office.run(
        f"gpucache {command}",
        uid=VICTIM,
        gid=VICTIM,
        env={"GPUCACHE_DIR": ROOT},
        volumes=machine.volumes,
    )
    hint = hint_of(before)
    assert "log in again, or `newgrp team`" in hint
    settings = follow(hint.replace("`newgrp team`", ""), machine.act, VICTIM, OWN)
    assert compiled(machine.serve(GPUCACHE_DIR=ROOT, **settings)) == 0


@pytest.mark.root
@pytest.mark.mounts
def test_who_is_not_in_the_group_is_told_its_name_and_finds_no_second_fault(office):
    machine = of_mates(office)
    refusal = machine.act(MALLORY, f"gpucache provision --root {ROOT}")
    assert "`sudo usermod -aG team mallory` and log in again" in hint_of(refusal)
    looked = machine.act(MALLORY, f"gpucache doctor --json --root {ROOT}")
    codes = {found["code"] for found in json.loads(looked.stdout)["findings"]}
    assert "unsafe-directory" in codes
    assert not codes & {"group-writable", "not-writable"}


MADE = f"gpucache provision --root {ROOT} --shared"
FILLED = f"GPUCACHE_DIR={ROOT} gpucache run -- python /app/serve.py"
FALLBACKS = {
    "of another user, which others may read": [(MALLORY, f"mkdir {ROOT}; {MADE} read; {FILLED}")],
    "of another user, private": [(MALLORY, f"mkdir -m 0700 {ROOT}; {MADE} private; {FILLED}")],
    "of root's, private": [(0, f"mkdir -m 0700 {ROOT}; {MADE} private; {FILLED}")],
    "of root's, with an open mode": [
        (0, f"mkdir -m 0755 {ROOT}; {MADE} private; {FILLED}; chmod 0755 {ROOT}")
    ],
    "of root's, which everybody may write": [
        (0, f"mkdir {ROOT}; {MADE} read; {FILLED}; chmod 0777 {ROOT}")
    ],
    "of a mate, shared": [
        (MATE, f"mkdir -m 0770 {ROOT}; chgrp {TEAM} {ROOT}; {MADE} group; {FILLED}")
    ],
}


@pytest.mark.root
@pytest.mark.mounts
@pytest.mark.parametrize("what", FALLBACKS)
def test_what_doctor_says_of_a_fallback_makes_it_one(what, image):
    machine = with_own_directory(image)
    for uid, line in FALLBACKS[what]:
        done = machine.act(uid, line)
        assert done.returncode == 0, (line, done.stderr)
    env = {"GPUCACHE_DIR": OWN, "GPUCACHE_FALLBACK": ROOT}
    looked = machine.act(VICTIM, "gpucache doctor --json", **env)
    findings = json.loads(looked.stdout)["findings"]
    (fix,) = [found["fix"] for found in findings if found["code"].startswith("fallback-")]
    settings = follow(fix.rpartition(", or ")[0], machine.act, VICTIM, OWN)
    assert compiled(machine.serve(**{**env, **settings})) == 0
