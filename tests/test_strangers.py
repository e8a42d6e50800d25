"""What a user of the machine whom nobody trusts can do to a team: nothing of his is executed, nobody waits for him.

Each attempt is Python code of Mallory's, who shares directories that everybody may write with the victim. Then the
victim's program runs, which fails if a kernel has another content than was compiled.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.containers import Image, own_disk, with_users
from support.pods import compiled
from support.stranger_holds import holding
from support.strangers import COMMON, GROUPS, MALLORY, MATE, TEAM, USERS, VICTIM, Machine

pytestmark = [pytest.mark.root, pytest.mark.mounts]
ALL = 3
"""How many kernels the program has."""
DEFAULT = "/tmp/torchinductor_victim"
"""The victim's root where nothing is set."""
NAMED = {"GPUCACHE_DIR": "/scratch/kernels", "GPUCACHE_TRUST_GROUPS": "team"}


@pytest.fixture(scope="module")
def image(can_mount: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    with own_disk(tmp_path_factory.mktemp("disk")) as disk:
        yield with_users(Image(disk), USERS, GROUPS)


@pytest.fixture
def machine(image: Image) -> Machine:
    return Machine(image)


OPEN_TO_ALL = f"""
P("/scratch/team").mkdir(); os.chown("/scratch/team", 0, {TEAM}); P("/scratch/team").chmod(0o3777)
"""
"""What an administrator has made: a directory in which each new one gets the group of the team, whoever makes it."""

PLANTED = {
    "a shared root at the victim's default path": (
        "",
        f"poisoned('{DEFAULT}'); mark('{DEFAULT}'); opened('{DEFAULT}')",
        {},
    ),
    "the same, of a group in common that the victim has not named": (
        "",
        f"poisoned('{DEFAULT}'); mark('{DEFAULT}'); given('{DEFAULT}', COMMON)",
        {"GPUCACHE_TRUST_GROUPS": "team"},
    ),
    "the same, which others may read": (
        "",
        f"poisoned('{DEFAULT}'); mark('{DEFAULT}', 'read'); opened('{DEFAULT}', 0o755, 0o644)",
        {"GPUCACHE_TRUST_GROUPS": "team"},
    ),
    "a root that has the team's group by the directory it is in": (
        OPEN_TO_ALL,
        "os.mkdir('/scratch/team/k', 0o770); poisoned('/scratch/team/k'); mark('/scratch/team/k')\n"
        "opened('/scratch/team/k'); assert os.stat('/scratch/team/k').st_gid == TEAM",
        {**NAMED, "GPUCACHE_DIR": "/scratch/team/k"},
    ),
    "the same, moved elsewhere": (
        OPEN_TO_ALL,
        "os.mkdir('/scratch/team/k', 0o770); poisoned('/scratch/team/k'); mark('/scratch/team/k')\n"
        "opened('/scratch/team/k'); os.rename('/scratch/team/k', '/scratch/kernels')\n"
        "assert oct(os.stat('/scratch/kernels').st_mode)[-4:] == '2770'",
        NAMED,
    ),
    "marks that are a link to a real one, a FIFO, a huge file, a directory": (
        OPEN_TO_ALL,
        "for name, make in marks().items():\n"
        "    os.mkdir(f'/scratch/team/{name}', 0o770); P(f'/scratch/team/{name}/gpucache/v1').mkdir(parents=True)\n"
        "    make(f'/scratch/team/{name}/gpucache/v1/sharing.json')\n"
        "    os.rename(f'/scratch/team/{name}', f'/scratch/{name}')",
        {**NAMED, "GPUCACHE_DIR": "/scratch/fifo"},
    ),
    "a link to a poisoned root at the victim's default path": (
        "",
        f"poisoned('/scratch/mine'); opened('/scratch/mine', 0o755, 0o644); os.symlink('/scratch/mine', '{DEFAULT}')",
        {},
    ),
    "a FIFO at the victim's default path": ("", f"os.mkfifo('{DEFAULT}')", {}),
    "a link in a circle there": ("", f"os.symlink('{DEFAULT}', '{DEFAULT}')", {}),
    "a poisoned root as the victim's fallback": (
        "",
        "poisoned('/scratch/mine'); mark('/scratch/mine', 'read'); opened('/scratch/mine', 0o755, 0o644)",
        {"GPUCACHE_DIR": "/scratch/own", "GPUCACHE_FALLBACK": "/scratch/mine"},
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_a_stranger_planted_is_not_executed(what, machine):
    before, script, env = PLANTED[what]
    machine.plants(before, uid=0)
    machine.plants(script)
    done = machine.serve(**env)
    assert done.returncode == 0, done.stderr
    assert f'"compiled": {ALL}' in done.stdout


@pytest.mark.parametrize(
    "env",
    [
        {"GPUCACHE_TRUST_GROUPS": "common"},
        {
            "GPUCACHE_FALLBACK": "/scratch/read",
            "GPUCACHE_TRUST_UIDS": str(MALLORY),
            "GPUCACHE_DIR": "/scratch/own",
        },
    ],
)
def test_the_poison_of_these_tests_works_on_who_trusts_its_maker(env, machine):
    """Else none of them shows anything."""
    machine.plants(PLANTED["the same, of a group in common that the victim has not named"][1])
    machine.plants(
        "poisoned('/scratch/read'); mark('/scratch/read', 'read'); opened('/scratch/read', 0o755, 0o644)"
    )
    done = machine.serve(**env)
    assert done.returncode != 0
    assert "AssertionError" in done.stderr


SQUATTED = """
for name in (f"gpucache-told-{VICTIM}", f"gpucache-{VICTIM}", f"gpucache-{TEAM}", "gpucache"):
    for place, make in (("/dev/shm", KIND), ("/tmp", KIND)):
        make(f"{place}/{name}")
for number in range(200):
    KIND(f"/dev/shm/gpucache-staging-{number:08x}.planted")
    KIND(f"/dev/shm/gpucache-{VICTIM}-{number:016x}")
    KIND(f"/dev/shm/gpucache-{TEAM}-{number:016x}")
"""


@pytest.mark.parametrize("kind", ["os.mkfifo", "os.mkdir", "link_to_mine", "bound_socket"])
def test_squatted_names_keep_nobody_from_anything(kind, machine):
    machine.plants(SQUATTED.replace("KIND", kind))
    env = {"GPUCACHE_DIR": "/scratch/own"}
    assert compiled(machine.serve(**env)) == ALL
    assert compiled(machine.serve(**env)) == 0
    assert machine.owned(VICTIM) == {
        path for path in machine.owned(VICTIM) if "planted" not in path
    }


def test_a_lock_on_all_that_he_can_open_keeps_nobody_waiting(machine):
    """The files of a root that others may read, its directories, and all that is everybody's."""
    env = {"GPUCACHE_DIR": "/scratch/read"}
    shared = machine.act(VICTIM, "gpucache provision --shared read", **env)
    assert shared.returncode == 0, shared.stderr
    assert compiled(machine.serve(**env)) == ALL
    with holding(machine) as many:
        assert many > ALL
        done = machine.act(VICTIM, "gpucache run -- python /app/serve.py first more", **env)
        assert compiled(done) == 1
        pruned = machine.act(VICTIM, "gpucache clean --yes --force", **env)
        assert pruned.returncode == 0, pruned.stderr
        assert pruned.stdout.count("remove\t") == ALL + 1


def test_he_cannot_link_what_he_can_read_into_the_way(machine):
    """Where the kernel protects hard links; elsewhere a second name of a file hurts nobody either."""
    env = {"GPUCACHE_DIR": "/scratch/read"}
    assert machine.act(VICTIM, "gpucache provision --shared read", **env).returncode == 0
    assert compiled(machine.serve(**env)) == ALL
    machine.plants("linked('/scratch/read', '/scratch/links')")
    assert compiled(machine.serve(**env)) == 0
    checked = machine.act(VICTIM, "gpucache verify", **env)
    assert checked.returncode == 0, checked.stdout


def test_another_gpucache_in_a_root_that_a_group_may_write_is_refused(machine):
    """The victim has let a group write, whose members he has not named."""
    env = {"GPUCACHE_DIR": "/scratch/open"}
    assert compiled(machine.serve(**env)) == ALL
    machine.plants(
        f"os.chown('/scratch/open', -1, {COMMON}); P('/scratch/open').chmod(0o770)", uid=VICTIM
    )
    machine.plants(
        "poisoned('/scratch/mine'); mark('/scratch/mine'); given('/scratch/mine', COMMON)\n"
        "for name in ('gpucache', 'triton'):\n"
        "    os.rename(f'/scratch/open/{name}', f'/scratch/open/old-{name}')\n"
        "    os.rename(f'/scratch/mine/{name}', f'/scratch/open/{name}')"
    )
    done = machine.serve(**env)
    assert f'"compiled": {ALL}' in done.stdout
    assert f"belongs to uid {MALLORY}" in done.stderr


def test_an_access_control_list_from_above_is_not_taken_over_into_a_shared_root(machine):
    """An administrator lets Mallory write all that is made in a directory; the team provisions a root there."""
    machine.plants(
        "P('/scratch/acl').mkdir(); os.chown('/scratch/acl', MATE, TEAM); P('/scratch/acl').chmod(0o2770)\n"
        "grants('/scratch/acl', MALLORY)",
        uid=0,
    )
    env = {"GPUCACHE_DIR": "/scratch/acl/kernels", "GPUCACHE_TRUST_GROUPS": "team"}
    done = machine.act(MATE, "gpucache provision --shared group", **env)
    assert done.returncode == 0, done.stderr
    assert compiled(machine.serve(MATE, **env)) == ALL
    machine.plants("assert not list(writable('/scratch/acl/kernels'))")
    assert compiled(machine.serve(**env)) == 0


def test_one_that_somebody_sets_later_is_refused(machine):
    env = {"GPUCACHE_DIR": "/scratch/kernels", "GPUCACHE_TRUST_GROUPS": "team"}
    machine.plants(
        "P('/scratch/kernels').mkdir(); os.chown('/scratch/kernels', MATE, TEAM); P('/scratch/kernels').chmod(0o2770)",
        uid=0,
    )
    done = machine.act(MATE, "gpucache provision --shared group", **env)
    assert done.returncode == 0, done.stderr
    assert compiled(machine.serve(MATE, **env)) == ALL
    machine.plants("grants('/scratch/kernels/gpucache/v1/store', MALLORY)", uid=MATE)
    done = machine.serve(**env)
    assert f'"compiled": {ALL}' in done.stdout
    assert f"uid {MALLORY} may write it by an access-control list" in done.stderr


@pytest.mark.parametrize("part", ["", "/locks", "/tmp"])
@pytest.mark.parametrize("sharing", ["group", "private"])
def test_roots_change_of_a_root_is_not_led_elsewhere(sharing, part, machine):
    """An administrator shares a directory into which everybody could put something until a moment ago."""
    machine.plants(f"{OPEN_TO_ALL}\nP('/scratch/kept/tmp').mkdir(parents=True)", uid=0)
    target = f"/scratch/team/gpucache/v1{part}"
    machine.plants(
        f"P('{target}').parent.mkdir(parents=True); os.symlink('/scratch/kept', '{target}')"
    )
    look = "ls -lanR --time-style=full-iso /scratch/kept"
    before = machine.act(0, f"chmod 2770 /scratch/team; {look}").stdout
    words = f"gpucache provision --root /scratch/team --shared {sharing} --yes"
    done = machine.act(0, words)
    assert done.returncode == 1
    assert f"belongs to uid {MALLORY}" in done.stderr
    assert machine.act(0, look).stdout == before
