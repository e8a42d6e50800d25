"""`docs/oci.md`: each of its lines is run, with a real registry, and a container that comes of it compiles nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import oci
from support.mcv import extract
from support.ranks import PLUGIN, compile_kernels

PAGE = (Path(__file__).parents[1] / "docs/oci.md").read_text(encoding="utf-8")
PUSH_PACK, PULL_PACK, BUILD, BUILD_MCV = oci.blocks(PAGE, "sh")
(DOCKERFILE,) = oci.blocks(PAGE, "dockerfile")
COUNT = 2

pytestmark = [pytest.mark.compiles, pytest.mark.servers]


class Builder:
    """A machine with a key, a root with real kernels, and the page's commands, of which the registry is this test's."""

    def __init__(self, place: Path, host: str) -> None:
        self.place, self.host = place, host
        self.repository = place.parent.name.lower().strip("_")
        commands = oci.commands(place / "bin")
        (commands / "gpucache").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gpucache "$@"\n')
        (commands / "gpucache").chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(place),
            "GPUCACHE_DIR": str(place / "root"),
        }
        said = self.shell("gpucache keygen ci")
        self.env["GPUCACHE_SIGN_KEY"] = f"{place}/ci.key"
        self.env["GPUCACHE_TRUST_KEYS"] = said.strip()

    def named(self, text: str) -> str:
        """A text of the page, with names of this test's own registry."""
        return text.replace("registry.example.com", f"{self.host}/{self.repository}")

    def shell(self, lines: str, where: Path | None = None, **more: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", self.named(lines)],
            env={**self.env, **more},
            cwd=where or self.place,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def directory(self, name: str) -> Path:
        made = self.place / name
        made.mkdir()
        return made


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Path:
    """A root with real kernels; do not change it."""
    root = tmp_path_factory.mktemp("kernels") / "root"
    compile_kernels(launch(root), COUNT, 90)
    return root


def launch(root: Path) -> dict[str, str]:
    """The environment of a program whose root this is."""
    return {"GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": f"{root}/triton/0", **PLUGIN}


@pytest.fixture
def builder(tmp_path, kernels, oci_registry) -> Builder:
    shutil.copytree(kernels, tmp_path / "builder/root")
    return Builder(tmp_path / "builder", oci_registry.host)


class TestAnArtifact:
    def test_of_a_registry_is_unpacked_on_a_node_that_compiles_nothing(self, builder, tmp_path):
        node = tmp_path / "node"
        node.mkdir()
        builder.shell(PUSH_PACK)
        builder.shell(PULL_PACK, node, GPUCACHE_DIR=str(node / "root"))
        assert compile_kernels(launch(node / "root"), COUNT, 90)["compiled"] == 0

    def test_that_somebody_has_put_there_instead_is_refused(self, builder, tmp_path):
        node = tmp_path / "node"
        node.mkdir()
        builder.shell(PUSH_PACK, GPUCACHE_SIGN_KEY="")
        with pytest.raises(AssertionError, match="nobody has signed it"):
            builder.shell(PULL_PACK, node, GPUCACHE_DIR=str(node / "root"))
        assert not (node / "root").exists()


class TestALayer:
    def container(self, builder: Builder, place: Path) -> tuple[Path, dict[str, str]]:
        """Where an image's file system is, and what the image says of the environment."""
        base = builder.directory("base")
        (base / "train.py").write_text("print('trains')\n")
        oci.push(
            builder.named("registry.example.com/train:latest"),
            oci.Image([oci.layer_of({"train.py": base / "train.py"})], {"LANG": "C"}, {}),
        )
        builder.shell("gpucache pack -o kernels.tar.zst")
        (builder.place / "Dockerfile").write_text(builder.named(DOCKERFILE))
        builder.shell(BUILD)
        image = oci.pull(builder.named("registry.example.com/train:kernels"))
        image.extract(place)
        assert (place / "train.py").exists()
        return place, image.env

    def test_has_all_that_a_container_needs_to_compile_nothing(self, builder, tmp_path):
        place, env = self.container(builder, tmp_path / "container")
        assert env == {"LANG": "C", "GPUCACHE_DIR": "/cache"}
        root = Path(f"{place}{env['GPUCACHE_DIR']}")
        assert compile_kernels(launch(root), COUNT, 90)["compiled"] == 0

    def test_serves_several_containers_as_the_lower_layer_of_overlays(
        self, builder, tmp_path, mount
    ):
        """As container runtimes mount it."""
        place, _ = self.container(builder, tmp_path / "image")
        uppers = mount(tmp_path / "uppers", "-t", "tmpfs", "none")
        for number in range(2):
            upper, work = uppers / f"upper{number}", uppers / f"work{number}"
            upper.mkdir()
            work.mkdir()
            layers = f"lowerdir={place},upperdir={upper},workdir={work}"
            top = mount(tmp_path / f"container{number}", "-t", "overlay", "none", "-o", layers)
            said = compile_kernels(launch(top / "cache"), COUNT, 90)
            assert (said["compiled"], said["dangling"]) == (0, [])

    @pytest.mark.parametrize("overlay", [False, True])
    def test_serves_a_container_that_may_not_write(self, builder, tmp_path, mount, overlay):
        place, _ = self.container(builder, tmp_path / "image")
        (tmp_path / "empty").mkdir()
        layers = f"lowerdir={tmp_path}/empty:{place}"
        if overlay:
            top = mount(tmp_path / "container", "-t", "overlay", "none", "-o", layers)
        else:
            top = mount(tmp_path / "container", "--bind", str(place))
            subprocess.run(["mount", "-o", "remount,ro,bind", top], check=True)
        said = compile_kernels(launch(top / "cache"), COUNT, 90)
        assert (said["compiled"], said["dangling"]) == (0, [])


class TestALayerForMcv:
    def test_is_the_only_one_of_an_image_whose_labels_tell_for_what_it_is(self, builder, tmp_path):
        builder.shell(BUILD_MCV, builder.directory("mcv"))
        image = oci.pull(builder.named("registry.example.com/kernels:mcv"))
        (layer,) = image.layers
        cache = tmp_path / "home/.triton/cache"
        listed = extract(layer, image.labels, cache)
        assert len(listed["triton"]) == COUNT
        summary = json.loads(image.labels["cache.triton.image/summary"])
        assert [one["arch"] for one in summary["targets"]] == ["90"]
        assert compile_kernels({"TRITON_CACHE_DIR": str(cache)}, COUNT, 90)["compiled"] == 0
