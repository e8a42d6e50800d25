"""What is the root of a cache, and what a command says to a root that is not there or is none."""

from __future__ import annotations

import os
import stat

import pytest
from support.trees import KEY, everything_below
from support.users import ADA, acting_as, directory

from gpucache.disk.root import check_cache, is_cache, is_empty, root_above
from gpucache.errors import NoRootError, ProvisionError

HASH = "a" * 52
COMMANDS = [
    ["ls"],
    ["ls", KEY],
    ["du"],
    ["stats"],
    ["verify"],
    ["verify", "--repair"],
    ["prune", "--yes"],
    ["prune", "--keep-binaries", "--dry-run"],
    ["clean", "--yes"],
    ["explain", KEY],
    ["why", KEY],
    ["compare", KEY, KEY],
    ["doctor"],
    ["config"],
]
EACH = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


@pytest.mark.parametrize(
    "sign",
    [
        "gpucache/v1",
        "gpucache/v2",  # of a later version
        "triton/0",
        "triton/1.2",
        "triton/None",
        f"triton/{KEY}",
        f"triton/by-hand/{KEY}",
        KEY,
        "fxgraph",
        "aotautograd",
        f"ab/cab{HASH}.py",
        f"locks/{HASH}.lock",
    ],
)
def test_one_sign_makes_a_cache(sign, root):
    path = root / sign
    path.parent.mkdir(parents=True)
    if path.suffix in (".py", ".lock"):
        path.touch()
    else:
        path.mkdir()
    (root / "a stranger's").touch()
    assert is_cache(str(root))
    check_cache(str(root))


@pytest.mark.parametrize(
    "other",
    [
        ["gpucache/cli", "gpucache/__init__.py"],  # a checkout of this very project
        ["triton/language", "triton/runtime"],  # one of Triton
        ["de/LC_MESSAGES", "en/LC_MESSAGES"],  # two letters, as of TorchInductor's code
        ["locks/apt.lock", "cache/" + "0" * 64],
        ["CACHEDIR.TAG"],  # another program's
        ["tmp", "store", "stats"],
    ],
)
def test_what_only_resembles_a_cache_is_none(other, root):
    for name in other:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert not is_cache(str(root))
    with pytest.raises(NoRootError, match="is no cache"):
        check_cache(str(root))


def test_a_link_to_a_cache_is_a_cache(root, tmp_path):
    (root / "triton/0").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    check_cache(str(tmp_path / "link"))


def test_links_in_a_root_are_no_signs(root, tmp_path):
    (tmp_path / "elsewhere/0").mkdir(parents=True)
    root.mkdir()
    (root / "triton").symlink_to(tmp_path / "elsewhere")
    (root / "fxgraph").symlink_to(tmp_path / "elsewhere")
    assert not is_cache(str(root))


def test_the_systems_own_directories_are_no_caches():
    for path in (
        "/etc",
        "/usr",
        "/usr/lib",
        "/usr/share",
        "/usr/share/locale",
        "/proc",
        "/dev",
        "/",
    ):
        if os.path.isdir(path):
            assert not is_cache(path), path


def test_an_empty_directory_is_no_mistake(root):
    root.mkdir()
    check_cache(str(root))
    assert is_empty(str(root))


@pytest.mark.parametrize(
    ("path", "above"),
    [
        ("/r/triton/0", "/r"),
        ("/r/triton/1.2/", "/r"),
        ("/r/triton/None", "/r"),
        ("/r/triton", None),
        ("/r/0", None),
        ("/r/triton/cache", None),
    ],
)
def test_a_device_directory_names_its_root(path, above):
    assert root_above(path) == above


# ---- what commands say


@EACH
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
@pytest.mark.parametrize("by", ["--root", "GPUCACHE_DIR"])
def test_a_root_that_was_named_and_is_not_there_is_an_error(
    command, as_json, by, here, tmp_path, monkeypatch
):
    typo = tmp_path / "typo"
    words = [*command, *(["--json"] if as_json else [])]
    if by == "--root":
        words += ["--root", typo]
    else:
        monkeypatch.setenv(by, str(typo))
    done = here(*words)
    assert done.code == 1
    if command[0] == "doctor":
        assert "root-missing" in done.out
    elif command[0] == "config":
        assert f"there is no {typo}" in done.err
    else:
        assert bool(done.out) is as_json
        assert done.err == (
            f"error: there is no {typo}\n"
            f"hint: correct {by}, or make it: `gpucache provision --root {typo}`\n"
        )
    assert not typo.exists()


def test_a_pattern_where_one_root_is_wanted_says_which_command_takes_patterns(here, tmp_path):
    done = here("ls", "--root", tmp_path / "*/kernels")
    assert done.code == 1
    assert done.err.splitlines()[1] == (
        "hint: name one root: only `gpucache prune` takes a pattern"
    )


@EACH
def test_a_default_root_that_was_not_made_yet_is_a_success_that_says_how(
    command, here, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "new"))
    done = here(*command)
    if KEY in command:
        assert done.code == 1  # no such entry
    else:
        assert done.code == 0
    assert "provision" in done.err + done.out or command == ["config"]


@EACH
def test_a_root_that_is_no_cache_gets_one_line_and_no_advice(command, here, tmp_path):
    etc = tmp_path / "etc"
    (etc / "ssl").mkdir(parents=True)
    (etc / "localtime").symlink_to("/usr/share/zoneinfo/UTC")
    (etc / "ssl/certs").symlink_to("/nowhere")
    before = everything_below(etc)
    done = here(*command, "--root", etc)
    assert done.code == 1
    about = [line for line in (done.err + done.out).splitlines() if str(etc) in line]
    if command == ["config"]:
        about = [line for line in about if not line.startswith("GPUCACHE_DIR\t")]
    about = [line for line in about if not line.endswith("findings")]
    (line,) = about
    assert f"{etc} is no cache" in line or f"root-no-cache\t{etc}\tit is no cache" in line
    assert "remove" not in done.err + done.out
    assert "hint" not in done.err
    assert everything_below(etc) == before


@EACH
@pytest.mark.parametrize("what", ["file", "dangling", "below a file"])
def test_a_root_that_is_no_directory_is_an_error(command, what, here, tmp_path):
    path = tmp_path / "it"
    if what == "dangling":
        path.symlink_to("nowhere")
    else:
        path.touch()
    if what == "below a file":
        path /= "root"
    done = here(*command, "--root", path)
    assert done.code == 1
    assert str(path) in done.err + done.out


def test_in_a_cache_no_link_of_the_users_own_gets_the_advice_to_be_removed(here, root):
    """As where a root is the home directory: a cache, and much else."""
    (root / "triton/0").mkdir(parents=True)
    (root / "photos").mkdir()
    (root / "photos/best").symlink_to("/nowhere")
    (root / "notes").symlink_to("/nowhere")
    assert here("ls", "--root", root).err == ""
    (root / "triton/0/planted").symlink_to("/nowhere")
    assert "triton/0/planted: a symbolic link" in here("ls", "--root", root).err


def test_an_empty_root_says_that_it_is_empty(here, root):
    root.mkdir()
    done = here("ls", "--root", root)
    assert (done.code, done.out) == (0, "")
    assert done.err == f"note: {root} is empty: nothing was provisioned or cached there\n"


OTHERS = [["provision"], ["devices"], ["path", "0"], ["env", "0"], ["run", "true"]]


@pytest.mark.parametrize("command", [*COMMANDS, *OTHERS], ids=" ".join)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_root_option_is_wrong_usage_and_not_the_default_root(command, empty, gpucache):
    """As of a script whose variable is not set, and which cleans."""
    name, *rest = command
    done = gpucache(name, "--root", empty, *rest)
    assert done.returncode == 2
    assert "the path is empty" in done.stderr


@pytest.mark.parametrize("command", ["provision", "run", "clean"])
def test_the_next_option_is_not_the_root(command, gpucache, tmp_path):
    """As of a script whose variable is not set, and not in quotes."""
    options = {"run": ["--", "true"], "clean": ["--yes"], "provision": ["--json"]}[command]
    for words in (["--root", *options], [f"--root={options[0]}", *options[1:]]):
        done = gpucache(command, *words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert f"'{options[0]}' looks like an option; if it is a path, say './" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_root_that_may_not_be_listed_is_an_error_with_the_command_that_opens_it(
    gpucache, everyones
):
    root = directory(everyones / "root", 0o000, ADA)
    with acting_as(ADA), pytest.raises(ProvisionError) as caught:
        check_cache(str(root))
    assert str(caught.value) == (
        f"could not look at {root}: Permission denied; `chmod u+rwx {root}`, which has mode 0000"
    )


# ---- what is made


def test_provision_makes_the_last_part_of_a_path_and_nothing_above(gpucache, tmp_path):
    root = tmp_path / "scratch" / "kernels"
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1"}
    done = gpucache("provision", "--root", root, env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        f"{tmp_path}/scratch is not there: mount it, or `mkdir -p {tmp_path}/scratch`"
        in done.stderr
    )
    assert not (tmp_path / "scratch").exists()
    (tmp_path / "scratch").mkdir()
    assert gpucache("provision", "--root", root, env=environ).returncode == 0
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_what_a_launch_makes_above_a_root_others_may_pass(tmp_path, python):
    """As torch and Triton make it: a mount point that root makes with mode 0700 shuts all others out."""
    code = """if True:
        import os
        from gpucache import cache_dir
        from gpucache.triton.location import locate
        os.umask(0)
        cache_dir()
        base = os.environ["BASE"]
        locate(f"{base}/b/d", {"GPUCACHE_DIR": f"{base}/b/root"})
    """
    environ = {
        **os.environ,
        "BASE": str(tmp_path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "a/root"),
    }
    done = python(code, env=environ)
    assert done.returncode == 0, done.stderr
    modes = {}
    for name in ("a", "a/root", "b", "b/root", "b/root/gpucache/v1/store"):
        modes[name] = oct((tmp_path / name).stat().st_mode & 0o777)
    assert modes == {
        "a": "0o755",
        "a/root": "0o700",
        "b": "0o755",
        "b/root": "0o700",
        "b/root/gpucache/v1/store": "0o700",
    }


def test_a_scan_of_what_is_not_there_is_no_empty_cache(tmp_path):
    from gpucache import scan

    with pytest.raises(NoRootError, match="there is no"):
        scan(str(tmp_path / "typo"))
    (tmp_path / "file").touch()
    with pytest.raises(NoRootError, match="is no directory"):
        scan(str(tmp_path / "file"))


@pytest.mark.parametrize("what", ["missing", "file"])
def test_run_ends_where_the_root_that_was_asked_for_has_no_place(what, gpucache, tmp_path):
    """Eight jobs of a misspelt mount would all compile for themselves."""
    above = tmp_path / "above"
    if what == "file":
        above.touch()
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1"}
    words = ["run", "--root", f"{above}/root"]
    done = gpucache(*words, "--", "echo", "ran", env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--no-strict executes echo all the same" in done.stderr
    done = gpucache(*words, "--no-strict", "--", "echo", "ran", env=environ)
    assert (done.returncode, done.stdout) == (0, "ran\n")
