"""The command line as its users meet it: whole outputs of real processes."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import told
from support.gpus import LIKE, gpus
from support.processes import python_path

from gpucache import DeviceCacheRegistry
from gpucache.cli import main

FAKE = "GPUCACHE_FAKE_DEVICES"


@pytest.fixture
def two(root):
    """An environment with two fake devices, provisioned nowhere yet."""
    return {**os.environ, FAKE: "2xH100:9.0", "GPUCACHE_DIR": str(root)}


def facts(done):
    return done.returncode, done.stdout, done.stderr


# ---- what there is to read


def test_provision_makes_the_directories_and_says_so(gpucache, two, root):
    done = gpucache("provision", env=two)
    warning = f"warning: the devices are fake (requested): {FAKE} is set to 2xH100:9.0\n"
    assert facts(done) == (
        0,
        f"{root}/triton/0\tcreated\tFAKE-0\n{root}/triton/1\tcreated\tFAKE-1\n",
        warning,
    )
    again = gpucache("provision", env=two)
    assert again.stdout == f"{root}/triton/0\texisting\tFAKE-0\n{root}/triton/1\texisting\tFAKE-1\n"


def test_provision_json_says_that_the_device_is_fake_and_why(gpucache, root):
    done = gpucache(
        "provision", "--json", "--root", root, env={**os.environ, "LD_LIBRARY_PATH": ""}
    )
    said = json.loads(done.stdout)
    if not said["fake"]:
        pytest.skip("this machine has a GPU")
    assert said["status"] == "no-library"
    assert "libnvidia-ml.so.1" in said["detail"]
    assert "install the NVIDIA driver" in said["advice"]
    assert said["created"] == ["0"]
    assert said["devices"] == [
        {
            "ordinal": 0,
            "directory": "0",
            "path": f"{root}/triton/0",
            "fake": True,
            "uuid": "FAKE-0",
            "index": 0,
            "name": "fake",
        }
    ]


def test_a_host_without_gpus_among_hosts_with_gpus_is_told_so(gpucache, machine, root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gpucache.layout.paths.host_name", lambda: "gpu1")
        DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    environ = {**machine("init_error = DRIVER_NOT_LOADED\n"), "GPUCACHE_DIR": str(root)}
    warning = (
        f"warning: no record of {os.uname().nodename} is made, since its one device would be fake"
    )
    done = gpucache("provision", env=environ)
    assert (done.returncode, done.stdout) == (0, f"{root}/triton/0\tnot made\tFAKE-0\n")
    assert done.stderr.startswith(warning)
    assert (
        "the real ones of gpu1; set GPUCACHE_FAKE_DEVICES=1 if a fake one is meant" in done.stderr
    )
    done = gpucache("run", "--", sys.executable, "-c", SHOW, env=environ)
    assert show(done)["GPUCACHE_DIR"] == str(root)
    assert "TRITON_CACHE_DIR" not in show(done)
    assert done.stderr.startswith(warning)
    assert "note: no GPU here, among hosts with GPUs: the root only" in done.stderr
    done = gpucache("run", "--device", 0, "--", "echo", "ran", env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    asked = gpucache("provision", env={**environ, "GPUCACHE_FAKE_DEVICES": "1"})
    assert (asked.returncode, gpucache("path", 0, env=environ).returncode) == (0, 0)


def test_devices_lists_them_and_makes_nothing(gpucache, machine, root):
    done = gpucache(
        "devices", "--root", root, env={**machine("mig"), "CUDA_VISIBLE_DEVICES": "1,0"}
    )
    assert facts(done) == (
        0,
        "2\t0\tNVIDIA A100-SXM4-80GB\t8.0\t80.0 GiB\tGPU-aaaaaaaa-0000-4000-8000-000000000000\n"
        "0\t1.0\tNVIDIA A100-SXM4-80GB MIG\t8.0\t10.0 GiB\tMIG-11111111-df4c-5451-979d-3231ccb0822e\n"
        "1\t1.2\tNVIDIA A100-SXM4-80GB MIG\t8.0\t10.0 GiB\tMIG-22222222-c95f-5ef2-a935-195bd0094fbd\n",
        "note: libcuda did not say in which order it counts these GPUs, so that a number may mean another GPU: "
        "name devices by UUID in CUDA_VISIBLE_DEVICES\n",
    )
    assert not root.exists()


def test_devices_json_tells_the_lost_and_the_hidden(gpucache, machine, root):
    done = gpucache("devices", "--json", "--root", root, env=machine("odd"))
    said = json.loads(done.stdout)
    assert said["status"] == "ok"
    assert said["lost"] == [{"index": 1, "code": 15, "text": "GPU is lost"}]
    assert said["hidden"] == [{"index": 2, "code": 4, "text": "Insufficient Permissions"}]
    assert [device["directory"] for device in said["devices"]] == ["0", "3", "4"]
    assert done.stderr == "warning: GPU 1 is lost: GPU is lost (code 15)\n"


def test_devices_says_where_cuda_cuts_the_mask(gpucache, two):
    done = gpucache("devices", env={**two, "CUDA_VISIBLE_DEVICES": "1,7,0"})
    assert done.stdout == "-\t0\tH100\t9.0\t-\tFAKE-0\n0\t1\tH100\t9.0\t-\tFAKE-1\n"
    assert done.stderr == "note: '7' names none of the 2 GPUs: the list ends before it\n"


def test_path_prints_the_path_and_nothing_else(gpucache, two, root):
    gpucache("provision", env=two)
    assert facts(gpucache("path", 1, env=two)) == (0, f"{root}/triton/1\n", "")
    assert json.loads(gpucache("path", 1, "--json", env=two).stdout)["uuid"] == "FAKE-1"


def test_path_and_env_ask_the_record_only(gpucache, machine, root, tmp_path):
    log = tmp_path / "nvml-calls"
    environ = {**machine("h100x4"), "GPUCACHE_DIR": str(root), "FAKENVML_LOG": str(log)}
    gpucache("provision", env=environ)
    log.unlink()
    assert gpucache("path", 3, env=environ).stdout == f"{root}/triton/3\n"
    assert gpucache("env", 3, env=environ).returncode == 0
    assert not log.exists()


@pytest.mark.parametrize("form", ["sh", "fish", "dotenv", "json"])
def test_env_gives_the_same_variables_in_every_format(form, gpucache, two, tmp_path):
    root = tmp_path / "with blank, 'quote', \"double\", $dollar, `tick` and \\ backslash"
    two["GPUCACHE_DIR"] = str(root)
    gpucache("provision", env=two)
    done = gpucache("env", 1, "--format", form, env=two)
    expected = {
        "GPUCACHE_DIR": str(root),
        "GPUCACHE_DEVICE": "FAKE-1",
        "TORCHINDUCTOR_CACHE_DIR": str(root),
        "TRITON_CACHE_DIR": f"{root}/triton/1",
    }
    said = _evaluated(form, done.stdout)
    assert said.pop("GPUCACHE_SET").startswith("GPUCACHE_DIR:")
    assert said == expected
    assert (
        told(gpucache("env", 1, "--json", env=two).stdout)["variables"].items() >= expected.items()
    )


def test_after_env_in_a_shell_each_rank_still_gets_its_own_device(gpucache, two, root):
    gpucache("provision", env=two)
    shell = {
        **two,
        **told(gpucache("env", 0, "--json", env=two).stdout)["variables"],
        "LOCAL_RANK": "1",
    }
    assert (
        show(gpucache("run", "--", sys.executable, "-c", SHOW, env=shell))["TRITON_CACHE_DIR"]
        == f"{root}/triton/1"
    )
    done = gpucache("path", 1, env=shell)
    assert "GPUCACHE_DEVICE=FAKE-0 pins this process to it" in done.stderr


def test_run_says_nothing_of_a_program_that_starts_its_workers_itself(gpucache, two):
    """Such workers share what they compile, with or without a directory for each device."""
    done = gpucache("run", "--", "true", env=two)
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: the devices are fake")


@pytest.mark.parametrize("manager", [None, "megatron:ParallelFileCacheManager"])
def test_run_says_that_it_sets_the_root_only_where_nothing_is_shared(gpucache, two, manager):
    words = () if manager else ("--no-plugin",)
    own = {"TRITON_CACHE_MANAGER": manager} if manager else {}
    done = gpucache("run", *words, "--", "true", env={**two, **own})
    assert (
        "note: 2 visible devices and no local rank: the root only, and TRITON_CACHE_DIR is not set; "
        "--device ORDINAL chooses one\n" in done.stderr
    )


def test_run_offers_no_device_where_there_is_none_to_choose(gpucache, two):
    done = gpucache("run", "--", "true", env={**two, "CUDA_VISIBLE_DEVICES": ""})
    assert done.stderr.endswith(": the root only, and TRITON_CACHE_DIR is not set\n")


def test_run_does_not_call_a_directory_of_the_users_unset(gpucache, two, tmp_path):
    mine = str(tmp_path / "mine")
    done = gpucache("run", "--", sys.executable, "-c", SHOW, env={**two, "TRITON_CACHE_DIR": mine})
    assert show(done)["TRITON_CACHE_DIR"] == mine
    assert "the root only" not in done.stderr


@pytest.mark.parametrize("given", [{}, {"LC_CTYPE": "C.UTF-8"}, {"LANG": "C.UTF-8"}])
def test_the_command_gets_no_locale_that_python_has_chosen(given, root):
    """Python of an environment without a locale puts `LC_CTYPE` into it."""
    environ = {"PYTHONPATH": python_path(), FAKE: "1", "GPUCACHE_DIR": str(root)}
    command = [sys.executable, "-m", "gpucache", "run", "--", "/usr/bin/env"]
    done = subprocess.run(command, env={**environ, **given}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    locale = [line for line in done.stdout.splitlines() if line.startswith(("LC_", "LANG"))]
    assert locale == [f"{name}={value}" for name, value in given.items()]


def test_a_command_whose_environment_has_no_room_for_more_runs_with_its_own(gpucache, two):
    """Linux takes no string of more than 128 KiB (``MAX_ARG_STRLEN``)."""
    path = f"{two.get('PYTHONPATH', '')}:".ljust(131_040, "x")
    environ = {**two, "PYTHONPATH": path}
    words = ("--device", 0, "--", "sh", "-c", "echo ${#PYTHONPATH} ${TRITON_CACHE_DIR-unset}")
    done = gpucache("run", *words, env=environ)
    assert done.stdout == "131040 unset\n"
    assert done.stderr.endswith(
        "error: sh: Argument list too long, with what gpucache sets\n"
        "warning: executing sh with its environment unchanged: each rank compiles each kernel\n"
    )
    done = gpucache("run", "--strict", *words, env=environ)
    assert (done.returncode, done.stdout) == (126, "")


def eight_ranks(gpucache, env, *words, between=""):
    """What eight ranks of one launcher say on stderr, which start `gpucache run`."""
    command = f"{sys.executable} -m gpucache run {' '.join(words)} -- true"
    script = f"for n in 0 1 2 3 4 5 6 7; do LOCAL_RANK=$n {between} {command} & done; wait"
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    return done.stderr.splitlines()


@pytest.mark.parametrize("between", ["", "bash -c '\"$@\"; true' bash"])
def test_what_eight_ranks_would_say_alike_one_of_them_says(between, gpucache, two):
    eight = {**two, FAKE: "8", "TRITON_CACHE_MANAGER": "other:Manager"}
    lines = eight_ranks(gpucache, eight, between=between)
    assert sorted(line.split(":")[0] for line in lines) == ["note", "warning"]
    again = eight_ranks(gpucache, eight, between=between)
    of_job = [line for line in lines if "devices are fake" not in line]
    assert again == of_job, "the next job is told again of what is not the node's"


def test_what_only_one_rank_has_to_say_that_rank_says(gpucache, two):
    lines = eight_ranks(gpucache, two)
    assert len([line for line in lines if "but 2 visible devices: the root only" in line]) == 6
    assert len([line for line in lines if "the devices are fake" in line]) == 1


def test_a_failure_of_every_rank_is_told_once_unless_it_ends_the_rank(gpucache, two, root):
    root.mkdir()
    root.chmod(0o777)
    lines = eight_ranks(gpucache, two)
    assert sorted(line.split(":")[0] for line in lines) == ["error", "hint", "warning"]
    lines = eight_ranks(gpucache, two, "--strict")
    assert [line.split(":")[0] for line in lines].count("error") == 8


def test_even_a_defect_is_shown_by_one_rank(monkeypatch, capsys, own_signals):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("gpucache.directories.launch.launch_environ", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(os, "execvpe", lambda *_: None)
    main.main(["run", "--", "true"])
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")  # what started this process has the ranks of both
    monkeypatch.setattr("gpucache.once.job", lambda _: "the job")
    main.main(["run", "--", "true"])
    main.main(["run", "--", "true"])
    assert capsys.readouterr().err.count("Traceback") == 1
    assert main.main(["run", "--strict", "--", "true"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_process_without_a_rank_says_all_each_time_but_that_devices_are_fake(gpucache, two):
    """Which is the node's, and is said there once a day, and wherever directories are made for fake devices."""
    own = {**two, "TRITON_CACHE_MANAGER": "other:Manager"}
    fake = f"warning: the devices are fake (requested): {FAKE} is set to 2xH100:9.0\n"
    said = gpucache("run", "--", "true", env=own).stderr
    assert said.startswith(fake)
    assert gpucache("run", "--", "true", env=own).stderr == said.removeprefix(fake) != ""
    assert gpucache("provision", env=own).stderr == ""
    assert gpucache("provision", "--json", env=own).stdout.count("the devices are fake") == 1
    assert (
        gpucache("provision", env={**own, "GPUCACHE_DIR": f"{two['GPUCACHE_DIR']}2"}).stderr == fake
    )


@pytest.mark.parametrize("command", [["gpucache", "doctor"], ["-m", "gpucache", "doctor"]])
def test_what_doctor_is_about_to_tell_is_not_told_before(gpucache, two, command):
    inner = command if command[0] == "gpucache" else [sys.executable, *command]
    done = gpucache("run", "--", *inner, env=two)
    assert (done.stdout + done.stderr).count("devices are fake") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUCACHE_DISABLE", "1"),
        ("GPUCACHE_SHARE", "0"),
        ("TRITON_ALWAYS_COMPILE", "1"),
        ("TRITON_KERNEL_OVERRIDE", "1"),
        ("USE_IR_LOC", "ttir"),
    ],
)
def test_what_the_user_has_turned_off_is_a_line_of_run_and_of_stats(name, value, gpucache, two):
    gpucache("provision", env=two)
    note = f"note: {name}={value}: "
    words = ("run", "--device", 0, "--", "true")
    for command in (words, ("stats",)):
        assert note not in gpucache(*command, env=two).stderr
        (line,) = [
            line
            for line in gpucache(*command, env={**two, name: value}).stderr.splitlines()
            if line.startswith(note)
        ]
        assert line.endswith(f"; unset {name} to share")


def test_help_shows_nobodys_environment(python):
    code = "import gpucache; [help(getattr(gpucache, name)) for name in gpucache.__all__]"
    assert "hunter2" not in python(code, env={**os.environ, "MY_SECRET": "hunter2"}).stdout


def test_files_are_completed_behind_run(gpucache):
    words = {
        "_GPUCACHE_COMPLETE": "bash_complete",
        "COMP_WORDS": "gpucache run -- python tra",
        "COMP_CWORD": "4",
    }
    assert gpucache(env={**os.environ, **words}).stdout == "file,tra\n"


def _evaluated(form: str, text: str) -> dict[str, str]:
    """What a reader of that format makes of the text."""
    names = (
        "GPUCACHE_DIR",
        "GPUCACHE_DEVICE",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "GPUCACHE_SET",
    )
    if form == "json":
        return told(text)["variables"]
    if form == "dotenv":  # the grammar that shells and dotenv readers share
        text = "set -a\n" + text
    # single quotes in fish know \\ and \'; a shell sees the same text through $'…'
    if form == "fish":
        lines = [line.removeprefix("set -gx ").split(" ", 1) for line in text.splitlines()]
        text = "".join(f"export {name}=$'{value[1:-1]}'\n" for name, value in lines)
    script = text + "\n".join(f'printf "%s\\0" "${name}"' for name in names)
    values = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env={}
    ).stdout
    return dict(zip(names, values.split("\0"), strict=False))


# ---- how it ends


def test_an_expected_failure_ends_with_1_an_error_and_a_hint(gpucache, two, root):
    done = gpucache("path", 0, env=two)
    record = root / "gpucache/v1/devices" / f"{os.uname().nodename}.json"
    assert facts(done) == (
        1,
        "",
        f"error: {record}: there is no record of host {os.uname().nodename}\n"
        "hint: run `gpucache provision` on this host, for this root\n",
    )
    gpucache("provision", env=two)
    done = gpucache("path", 2, env=two)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: no device with ordinal 2: this process has ordinals 0 to 1\nhint: "
    )


@pytest.mark.parametrize("command", ["devices", "provision"])
def test_a_sick_node_is_an_error_and_never_a_fake(command, gpucache, machine, root):
    done = gpucache(command, "--root", root, env=machine("init_error = LIB_RM_VERSION_MISMATCH\n"))
    assert done.returncode == 1
    assert "version-mismatch" in done.stderr
    assert "hint: the driver was updated" in done.stderr
    assert not root.exists()


@pytest.mark.parametrize("command", ["devices", "provision"])
def test_require_gpu_fails_without_one(command, gpucache, machine, root):
    done = gpucache(
        command, "--require-gpu", "--root", root, env=machine("init_error = DRIVER_NOT_LOADED\n")
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no GPU here (no-driver)")


@pytest.mark.parametrize(
    "words",
    [
        ["path"],
        ["path", "x"],
        ["nonsense"],
        ["run"],
        ["env", "0", "--format", "csh"],
        ["devices", "--nope"],
    ],
)
def test_wrong_usage_ends_with_2(words, gpucache):
    done = gpucache(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .+\nhint: .+\n", done.stderr)


def test_an_unexpected_failure_ends_with_3_and_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(DeviceCacheRegistry, "load", lambda *_: 1 / 0)
    assert main.main(["path", "0"]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DeviceCacheRegistry, "load", interrupted)
    assert main.main(["path", "0"]) == 130
    assert main.main(["path", "--json", "0"]) == 130


def test_a_reader_that_goes_away_is_no_defect(two):
    process = subprocess.Popen(
        [sys.executable, "-m", "gpucache", "devices"],
        env={**two, FAKE: "1024"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, b"")


@pytest.mark.parametrize("command", [[], ["devices"], ["provision"], ["path"], ["env"], ["run"]])
def test_every_command_has_help_with_an_example(command, gpucache):
    done = gpucache(*command, "--help")
    assert done.returncode == 0
    assert "\n  gpucache " in done.stdout


def test_a_full_disk_behind_stdout_is_an_error_and_no_defect(two):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpucache", "devices"],
            env=two,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "error: could not write to stdout: No space left on device\n",
    )


def test_what_the_operating_system_refuses_is_an_error_with_its_path_and_no_defect(
    here, monkeypatch
):
    def refused(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/scratch/kernels")

    monkeypatch.setattr(DeviceCacheRegistry, "load", refused)
    done = here("path", "0")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: /scratch/kernels: Stale file handle\nhint: ")


def test_a_path_keeps_its_bytes_in_any_locale(two, tmp_path):
    root = os.fsencode(tmp_path) + b"/n\xc3\xbc-\xff"
    environ = {**two, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in (["provision"], ["path", "1"]):
        done = subprocess.run(
            [sys.executable, "-m", "gpucache", *words, "--root", root],
            env=environ,
            capture_output=True,
        )
    assert done.stdout == root + b"/triton/1\n"


def test_a_current_directory_that_is_gone_is_an_expected_failure(two, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = (
        f"cd {gone} && rmdir {gone} && exec {sys.executable} -P -m gpucache provision --root here"
    )
    if sys.version_info < (3, 11):
        script = script.replace(" -P", "")
    done = subprocess.run(["bash", "-c", script], env=two, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the current directory is gone" in done.stderr


def test_another_users_private_directory_is_refused_with_the_way_out(
    as_root, two, everyones, python
):
    theirs = everyones / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 54321, 54321)
    code = """if True:
        import os, sys, signal, traceback, click
        import gpucache.directories.launch, gpucache.cli.device_rows, gpucache.once
        from gpucache.cli.main import main
        os.setgroups([]), os.setgid(54322), os.setuid(54322)
        sys.exit(main(sys.argv[1:]))
    """
    done = python(code, "path", 0, "--root", theirs, env=two)
    assert done.returncode == 1
    assert f"error: {theirs}: belongs to uid 54321" in done.stderr
    done = python(code, "run", "--root", theirs, "--", "echo", "ran", env=two)
    assert (done.returncode, done.stdout) == (0, "ran\n")


# ---- on a terminal


def _on_a_terminal(*words: str, env: dict[str, str]) -> str:
    main, secondary = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "gpucache", *words], stdout=secondary, env=env
    ) as process:
        os.close(secondary)
        text = b""
        while True:
            try:
                piece = os.read(main, 4096)
            except OSError:  # the other side is closed
                break
            text += piece
    os.close(main)
    assert process.returncode == 0
    return text.decode()


def test_a_terminal_gets_a_table_with_a_head(two):
    shown = _on_a_terminal("devices", env={**two, "TERM": "xterm-256color", "COLUMNS": "120"})
    assert "ordinal" in shown
    assert "\x1b[" in shown


def test_a_narrow_terminal_shows_whole_what_one_copies(machine, tmp_path):
    shown = _on_a_terminal("devices", env={**machine("h100x4"), "TERM": "dumb", "COLUMNS": "60"})
    uuids = [line.split()[-1] for line in shown.splitlines()[1:]]
    assert [len(uuid) for uuid in uuids] == [len("GPU-") + 36] * 4


def test_no_color_is_respected(two):
    shown = _on_a_terminal(
        "devices", env={**two, "TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"}
    )
    assert "ordinal" in shown
    assert "\x1b[3" not in shown


def test_the_shell_can_complete_commands(gpucache):
    environ = {
        **os.environ,
        "_GPUCACHE_COMPLETE": "bash_complete",
        "COMP_WORDS": "gpucache pro",
        "COMP_CWORD": "1",
    }
    assert gpucache(env=environ).stdout == "plain,provision\n"


# ---- run


SHOW = "import os, json; print(json.dumps({k: v for k, v in os.environ.items()}))"


def show(done):
    return json.loads(done.stdout)


def test_run_executes_the_command_in_its_devices_directories(gpucache, two, root):
    seen = show(gpucache("run", "--device", "1", "--", sys.executable, "-c", SHOW, env=two))
    assert seen["TRITON_CACHE_DIR"] == f"{root}/triton/1"
    assert seen["GPUCACHE_DEVICE"] == "FAKE-1"
    assert (root / "triton" / "1").is_dir()


def test_run_passes_the_commands_own_options_on(gpucache, two):
    done = gpucache(
        "run", sys.executable, "-c", "import sys; print(sys.argv)", "--device", "--", "-x", env=two
    )
    assert done.stdout == "['-c', '--device', '--', '-x']\n"


def test_run_does_not_take_a_mistyped_option_for_the_command(gpucache, two):
    done = gpucache("run", "--strict", "--foce", "--", "echo", "y", env=two)
    assert (done.returncode, done.stdout) == (2, "")
    assert gpucache("run", "--", "", env=two).returncode == 2


@pytest.mark.parametrize("where", [">&-", "2>/dev/full", "2>&-", "2>&1 >/dev/null | true", "<&-"])
def test_run_executes_the_command_whatever_became_of_the_standard_streams(where, two, tmp_path):
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -m gpucache run -- touch {tmp_path}/ran {where}; sleep 0; wait",
        ],
        env={**two, "TRITON_CACHE_DIR": "/mine"},
        capture_output=True,
        timeout=60,
    )
    assert (tmp_path / "ran").exists(), done


def test_run_gives_a_script_without_a_shebang_to_the_shell(gpucache, two, tmp_path):
    script = tmp_path / "plain"
    script.write_text("echo $1 $TRITON_CACHE_DIR\n")
    script.chmod(0o755)
    done = gpucache("run", "--device", 1, "--", script, "a", env=two)
    assert done.stdout == f"a {two['GPUCACHE_DIR']}/triton/1\n"


def test_run_takes_a_root(gpucache, two, tmp_path):
    seen = show(
        gpucache(
            "run",
            "--root",
            tmp_path / "r",
            "--device",
            0,
            "--",
            sys.executable,
            "-c",
            SHOW,
            env=two,
        )
    )
    assert seen["GPUCACHE_DIR"] == seen["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "r")


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_commands_own(code, gpucache, two):
    assert (
        gpucache("run", "--", sys.executable, "-c", f"raise SystemExit({code})", env=two).returncode
        == code
    )


def test_a_signal_reaches_the_command_itself(two):
    """The process that was started becomes the command: same pid."""
    with subprocess.Popen(
        [sys.executable, "-m", "gpucache", "run", "--", "/bin/sh", "-c", "echo $$; exec sleep 600"],
        env=two,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def test_the_command_dies_of_a_broken_pipe_like_any_other(two):
    """Python ignores SIGPIPE, and an ignored signal would stay so across exec."""
    script = (
        f"{sys.executable} -m gpucache run -- yes 2>/dev/null | head -n 1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", script], env=two, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"y\n{128 + signal.SIGPIPE}\n"


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_executed_ends_as_in_a_shell(command, code, gpucache, two):
    done = gpucache("run", "--", command, env=two)
    assert done.returncode == code
    assert f"error: {command}: " in done.stderr


def test_when_provisioning_fails_the_command_runs_unchanged(gpucache, two, root):
    root.mkdir()
    root.chmod(0o777)
    done = gpucache("run", "--device", 0, "--", sys.executable, "-c", SHOW, env=two)
    assert "TRITON_CACHE_DIR" not in show(done)
    assert done.stderr.startswith(f"error: {root}: everybody may write it")
    assert "environment unchanged" in done.stderr


def test_strict_fails_instead(gpucache, two, root):
    root.mkdir()
    root.chmod(0o777)
    done = gpucache("run", "--strict", "--", "echo", "ran", env=two)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_device_that_was_asked_for_and_is_not_there_is_an_error(gpucache, two):
    echo = ("--device", 7, "--", "echo", "ran")
    done = gpucache("run", *echo, env=two)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no device with ordinal 7: this process has ordinals 0 to")
    assert done.stderr.endswith("hint: --no-strict executes echo all the same\n")
    done = gpucache("run", "--no-strict", *echo, env=two)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "warning: executing echo with its environment unchanged" in done.stderr
    assert gpucache("run", *echo, env={**two, "CUDA_VISIBLE_DEVICES": ""}).returncode == 1


@pytest.fixture
def own_signals():
    """`run` sets two signals to their defaults; in this process, Python's own must come back."""
    names = (signal.SIGPIPE, signal.SIGXFSZ)
    before = [signal.getsignal(name) for name in names]
    yield
    for name, handler in zip(names, before, strict=True):
        signal.signal(name, handler)


def test_even_our_defect_does_not_stop_the_command(monkeypatch, capsys, own_signals):
    monkeypatch.setattr("gpucache.directories.launch.launch_environ", lambda *_, **__: 1 / 0)
    executed = []
    monkeypatch.setattr(os, "execvpe", lambda *words: executed.append(words))
    main.main(["run", "--", "true"])
    assert executed[0][:2] == ("true", ["true"])
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert main.main(["run", "--strict", "--", "true"]) == 3


def test_what_the_user_set_is_kept_and_told(gpucache, two):
    done = gpucache(
        "run",
        "--device",
        0,
        "--",
        sys.executable,
        "-c",
        SHOW,
        env={**two, "TRITON_CACHE_DIR": "/mine"},
    )
    assert show(done)["TRITON_CACHE_DIR"] == "/mine"
    assert "note: kept TRITON_CACHE_DIR=/mine: you set it" in done.stderr


def test_a_directory_that_is_fresh_on_purpose_is_told_where_the_plug_in_shares_nothing(
    gpucache, two
):
    fresh = {**two, "TRITON_CACHE_DIR": "/scratch/tmpabcdef78/triton"}
    note = "/scratch/tmpabcdef78/triton is fresh on purpose, by its part tmpabcdef78"
    plugged_in = ("run", "--device", 0, "--plugin", "--", "true")
    assert note in gpucache(*plugged_in, env=fresh).stderr
    assert note not in gpucache(*plugged_in, env={**fresh, "GPUCACHE_SHARE": "1"}).stderr
    assert note not in gpucache(*plugged_in, env={**two, "TRITON_CACHE_DIR": "/tmp/mine"}).stderr
    assert note not in gpucache("run", "--device", 0, "--no-plugin", "--", "true", env=fresh).stderr


def test_disabled_the_command_runs_as_if_we_were_not_there(gpucache, two, root):
    environ = {**two, "GPUCACHE_DISABLE": "1"}
    assert facts(gpucache("env", 0, env=environ)) == (0, "", "")
    assert "not made" in gpucache("provision", env=environ).stdout
    assert show(gpucache("run", "--", sys.executable, "-c", SHOW, env=environ)) == show(
        subprocess.run(
            [sys.executable, "-c", SHOW], env=environ, capture_output=True, text=True, check=True
        )
    )
    assert not root.exists()


def test_the_console_script_is_installed(tmp_path):
    script = Path(sys.executable).with_name("gpucache")
    assert script.exists() or shutil.which("gpucache"), (
        "install the package: pip install -e '.[test]'"
    )
