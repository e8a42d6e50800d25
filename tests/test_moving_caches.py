"""The lines of the page on moving caches, in the order of a fleet: CI packs and pushes, others pull."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.read_through import end_couriers
from support.recipes import recipe_file
from support.servers import S3Server, apart
from support.stand_in_commands import stand_in_commands
from support.templates import Template

PAGE = (Path(__file__).parents[1] / "docs/moving-caches.md").read_text(encoding="utf-8")
SAY = "import os; os.write(1, os.environ['TRITON_CACHE_DIR'].encode() + b'\\n')\n"


def lines_after(heading: str) -> list[str]:
    """The commands under a heading."""
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    (block,) = re.findall(r"```sh\n(.*?)```", part, re.DOTALL)
    return [line.partition("  #")[0].strip() for line in block.splitlines()]


class Places:
    """A CI machine that has compiled one kernel, and roots of those who take it over; each line is run by a shell."""

    def __init__(self, directory: Path, compiled: Template, remote: dict[str, str]) -> None:
        self.directory = directory
        self.root = compiled.at(directory / "ci")
        self.environ = {
            **os.environ,
            **remote,
            "PATH": f"{stand_in_commands(directory)}:{os.environ['PATH']}",
            "GPUCACHE_FAKE_DEVICES": "4xH100:9.0",
            "GPUCACHE_SIGN_KEY": "ci.key",
            "GPUCACHE_DIR": str(self.root),
        }
        for program in ("train.py", "experiment.py"):
            (directory / program).write_text(SAY)
        recipe_file(directory / "recipes.jsonl")
        self.environ["GPUCACHE_TRUST_KEYS"] = self.say("gpucache keygen ci").strip()

    def say(self, line: str, **environ: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.directory,
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout

    def push(self) -> None:
        """What CI does on the page."""
        for line in lines_after("CI without a GPU, containers with one"):
            self.say(line)

    def stored(self, root: Path) -> set[str]:
        return {path.name for path in root.glob("gpucache/v1/store/*/*")}


@pytest.fixture
def places(one_kernel: Template, s3_server: S3Server, tmp_path: Path) -> Iterator[Places]:
    remote = s3_server.writer | {"GPUCACHE_REMOTE": s3_server.url(apart())}
    made = Places(tmp_path, one_kernel, remote)
    yield made
    for root in tmp_path.glob("*"):
        if (root / "gpucache").is_dir():
            end_couriers(root)


def test_what_ci_pushes_is_in_an_image_or_at_each_task_of_slurm(places: Places) -> None:
    places.push()
    kernels = places.stored(places.root)
    image, node = places.directory / "image", places.directory / "node"
    (line,) = lines_after("In the image")
    places.say(line.replace("/opt/gpucache", str(image)), GPUCACHE_SIGN_KEY="")
    assert places.stored(image) == kernels
    own = {"GPUCACHE_DIR": str(node), "GPUCACHE_SIGN_KEY": ""}
    places.say("gpucache provision", **own)
    pulls, runs = lines_after("Slurm")
    places.say(pulls, **own)
    assert places.stored(node) == kernels
    assert sorted(places.say(runs, **own).split()) == [f"{node}/triton/{n}" for n in range(4)]


def test_the_init_container_of_kubernetes_pulls_into_a_volume(places: Places) -> None:
    """Which everybody may write, as that of an `emptyDir`; whom to trust stands in a file."""
    places.push()
    (words,) = re.findall(r"command: (\[.*\])", PAGE)
    volume = places.directory / "kernels"
    volume.mkdir()
    volume.chmod(0o777)
    trusted = places.directory / "trusted"
    trusted.write_text(f"# CI\n{places.environ['GPUCACHE_TRUST_KEYS']}\n")
    own = dict(re.findall(r"{name: (GPUCACHE_TRUST_\w+), value: \"(.*?)\"}", PAGE))
    own["GPUCACHE_TRUST_KEYS"] = own["GPUCACHE_TRUST_KEYS"].replace(
        "/etc/gpucache", str(places.directory)
    )
    command = " ".join(json.loads(words)).replace("/kernels", str(volume))
    places.say(command, **own)
    assert places.stored(volume / "root") == places.stored(places.root)


def test_a_team_reads_what_ci_has_pushed_by_night(places: Places) -> None:
    program, push = lines_after("A team")
    said = json.loads(places.say(f"{push} --json"))
    assert {entry["key"] for entry in said["put"]} == places.stored(places.root)
    own = {
        "GPUCACHE_DIR": str(places.directory / "workstation"),
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
    }
    assert places.say(program, **own).strip().endswith("/workstation/triton/1")


def test_each_block_of_commands_is_run_here() -> None:
    headings = re.findall(r"^## (.*)\n(?:(?!^## ).*\n)*?```(?:sh|yaml)", PAGE, re.M)
    assert headings == [
        "CI without a GPU, containers with one",
        "In the image",
        "Kubernetes",
        "Slurm",
        "A team",
    ]
