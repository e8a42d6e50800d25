"""The situations of the page on containers, by its own manifests and Dockerfiles: cold, warm, and what is compiled."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from support.containers import Image, empty_dir, own_disk, set_volume_ownership
from support.pods import Dockerfile, Done, Pod, blocks, compiled, unexpected

PAGE = (Path(__file__).parents[1] / "docs/containers.md").read_text(encoding="utf-8")
ALL = 3
"""How many kernels the program has; a pack of the image has two of them."""

pytestmark = [pytest.mark.root, pytest.mark.mounts]

SERVE = "gpucache run -- python /app/serve.py"
BUILD = """
cd /app
gpucache keygen ci > ci.keys
GPUCACHE_DIR=/build gpucache run -- python serve.py first second
GPUCACHE_SIGN_KEY=ci.key gpucache pack -o model.tar.zst --root /build
rm ci.key; chmod 644 model.tar.zst
"""


@pytest.fixture(scope="module")
def disk(can_mount: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of its own for layers and volumes."""
    with own_disk(tmp_path_factory.mktemp("disk")) as made:
        yield made


@pytest.fixture(scope="module")
def model(disk: Path) -> Image:
    """The image ``model``: the program, a pack of two of its three kernels, and the key that signed the pack."""
    build = disk / "build"
    build.mkdir(mode=0o700)
    return Image(disk).built(BUILD, volumes={"/build": build})


def manifest(heading: str) -> str:
    (found,) = blocks(PAGE, heading, "yaml")
    return found


def dockerfile(heading: str) -> str:
    (found,) = blocks(PAGE, heading, "dockerfile")
    return found


def initialized(pod: Pod) -> None:
    for done in pod.initialized():
        assert done.returncode == 0, done.stderr


class TestPods:
    @pytest.mark.parametrize(
        "heading",
        [
            "An init container as root, the program as another user",
            "The same without fsGroup",
            "Two users, none of them root",
        ],
    )
    def test_what_an_init_container_unpacked_the_program_does_not_compile(self, heading, model):
        pod = Pod(manifest(heading), model)
        initialized(pod)
        assert compiled(pod.main()) == 1
        assert compiled(pod.main()) == 0

    def test_an_init_container_that_runs_again_finds_all_there(self, model):
        """As when the node restarts."""
        pod = Pod(manifest("An init container as root, the program as another user"), model)
        initialized(pod)
        assert compiled(pod.main()) == 1
        initialized(pod)
        assert compiled(pod.main()) == 0

    @pytest.mark.parametrize(
        "heading", ["All containers of a pod run as one user", "A read-only root file system"]
    )
    def test_a_program_alone_compiles_once(self, heading, model):
        pod = Pod(manifest(heading), model)
        assert compiled(pod.main()) == ALL
        assert compiled(pod.main()) == 0


@pytest.fixture(scope="module")
def real(triton: None, model: Image) -> Image:
    """The image with a program whose kernel the real Triton compiles."""
    program = Path(__file__).parent / "support/compile_kernel.py"
    return model.built(f"cp {program} /app/serve.py")


class TestRealTriton:
    """With a kernel that Triton compiles, whose compiler needs a temporary directory, and whose launcher is loaded."""

    def was_hit(self, done: Done) -> bool:
        assert done.returncode == 0, done.stderr
        assert unexpected(done) == []
        return bool(json.loads(done.stdout.splitlines()[-1])["hit"])

    @pytest.mark.parametrize(
        "heading",
        [
            "A read-only root file system",
            "An init container as root, the program as another user",
        ],
    )
    def test_the_second_container_compiles_nothing(self, heading, real):
        pod = Pod(manifest(heading), real)
        initialized(pod)
        assert not self.was_hit(pod.main())
        assert self.was_hit(pod.main(runAsUser=1001))

    def test_what_root_compiled_in_an_image_any_user_copies(self, real):
        text = dockerfile("Kernels in the image, for any user")
        line = "GPUCACHE_TRUST_KEYS=ci.keys gpucache unpack model.tar.zst --root /opt/kernels"
        assert line in text
        compiling = "gpucache run --root /opt/kernels -- python serve.py"
        image = Dockerfile(text.replace(line, compiling), real)
        assert self.was_hit(image.run(54321, 54321))


class TestImages:
    def test_a_random_user_of_group_0_has_what_the_image_has(self, model):
        image = Dockerfile(dockerfile("OpenShift: any user id, in group 0"), model)
        written = image.image.disk / "random"
        written.mkdir()
        assert compiled(image.run(1000650000, layer=written)) == 1
        assert compiled(image.run(1000650000, layer=written)) == 0

    def test_and_another_random_user_what_the_first_one_has_compiled(self, model):
        image = Dockerfile(dockerfile("OpenShift: any user id, in group 0"), model)
        written = image.image.disk / "both"
        written.mkdir()
        assert compiled(image.run(1000650000, layer=written)) == 1
        assert compiled(image.run(1000660000, layer=written)) == 0

    def test_the_customary_chmod_serves_one_random_user(self, model):
        image = model.built(
            "gpucache provision --root /opt/kernels && cd /app && "
            "GPUCACHE_TRUST_KEYS=ci.keys gpucache unpack model.tar.zst --root /opt/kernels && "
            "chgrp -R 0 /opt/kernels && chmod -R g=u /opt/kernels"
        )
        env = {"GPUCACHE_DIR": "/opt/kernels"}
        written = model.disk / "customary"
        written.mkdir()
        for expected in (1, 0):
            done = image.run(SERVE, uid=1000650000, env=env, layer=written)
            assert compiled(done) == expected

    def test_the_images_own_user_goes_on_where_the_image_ends(self, model):
        image = Dockerfile(dockerfile("Kernels in the image, for its own user"), model)
        written = image.image.disk / "own"
        written.mkdir()
        assert compiled(image.run(gid=1000, layer=written)) == 1
        assert compiled(image.run(gid=1000, layer=written)) == 0

    @pytest.mark.parametrize("uid", [1000, 54321])
    def test_any_user_copies_what_he_needs_from_the_image(self, uid, model):
        image = Dockerfile(dockerfile("Kernels in the image, for any user"), model)
        written = image.image.disk / f"any-{uid}"
        written.mkdir()
        assert compiled(image.run(uid, uid, layer=written)) == 1
        assert compiled(image.run(uid, uid, layer=written)) == 0

    def test_and_compiles_nothing_again_in_a_volume_that_stays(self, model):
        image = Dockerfile(dockerfile("Kernels in the image, for any user"), model)
        image.env |= {"GPUCACHE_DIR": "/cache", "GPUCACHE_TRUST_WORLD_WRITABLE": "1"}
        volumes = {"/cache": empty_dir(model.disk)}
        assert compiled(image.run(1000, volumes=volumes, read_only=True)) == 1
        assert compiled(image.run(1000, volumes=volumes, read_only=True)) == 0


class TestNamedVolumes:
    def test_a_new_one_is_the_image_users_and_keeps_what_was_compiled(self, model):
        """Docker copies the image's directory into a volume that is empty."""
        image = Dockerfile(dockerfile("Docker and Compose: a named volume"), model)
        volumes = empty_dir(model.disk)
        copied = image.image.run("cp -a /cache /volumes/kernels", volumes={"/volumes": volumes})
        assert copied.returncode == 0, copied.stderr
        for expected in (ALL, 0):
            done = image.run(gid=1000, volumes={"/cache": volumes / "kernels"})
            assert compiled(done) == expected


class TestVolumes:
    HEADING = "Volumes that pods of several users share"

    def test_pods_of_two_users_compile_once_in_a_directory_of_the_node(self, model):
        """The lines of shell are root's on the node, the manifest is that of each pod."""
        (lines,) = blocks(PAGE, self.HEADING, "sh")
        node = model.disk / "node"
        node.mkdir()
        node.chmod(0o755)
        made = model.run(lines, volumes={"/var/cache": node})
        assert made.returncode == 0, made.stderr
        pod = Pod(manifest(self.HEADING), model, {"kernels": node / "kernels"})
        assert compiled(pod.main()) == ALL
        assert compiled(pod.main(runAsUser=1002)) == 0

    def test_a_claim_with_fsgroup_stays_a_shared_root_when_it_is_mounted_again(self, model):
        text = manifest("An init container as root, the program as another user")
        pod = Pod(text, model)
        initialized(pod)
        assert compiled(pod.main()) == 1
        set_volume_ownership(pod.volumes["cache"], 2000)
        assert compiled(pod.main(runAsUser=1002)) == 0
        initialized(pod)
        assert compiled(pod.main()) == 0

    def test_a_private_root_that_the_kubelet_has_opened_is_refused_to_another_user(self, model):
        """And one command of its owner's, or of an init container of root's, makes it a shared one."""
        text = manifest("All containers of a pod run as one user")
        pod = Pod(text, model)
        assert compiled(pod.main()) == ALL
        set_volume_ownership(pod.volumes["cache"], 2000)
        pod.security["fsGroup"] = 2000
        assert compiled(pod.main()) == 0
        refused = pod.main(runAsUser=1002)
        assert "/cache/triton: belongs to uid 1001, not to uid 1002 (mode 2770)" in refused.stderr


class TestUserNamespaces:
    """As in rootless podman: root inside is uid 100000 outside."""

    ROOTLESS = (sys.executable, str(Path(__file__).parent / "support/user_namespace.py"))
    MAP = ("100000", "65536")
    ENV: ClassVar = {"GPUCACHE_DIR": "/cache"}

    def volume(self, model: Image, owner: int, mode: int = 0o700) -> dict[str, Path]:
        made = empty_dir(model.disk)
        os.chown(made, owner, owner)
        made.chmod(mode)
        return {"/cache": made}

    def run(self, model: Image, volumes: dict[str, Path], **options: object):
        become = (*self.ROOTLESS, *self.MAP)
        return model.run(SERVE, volumes=volumes, env=self.ENV, become=become, **options)

    @pytest.mark.parametrize("uid", [0, 1001, 65534])
    def test_a_volume_of_a_user_inside_is_that_users_own(self, uid, model):
        volumes = self.volume(model, 100000 + uid)
        assert compiled(self.run(model, volumes, uid=uid, gid=uid)) == ALL
        assert compiled(self.run(model, volumes, uid=uid, gid=uid)) == 0

    @pytest.mark.parametrize("uid", [0, 1001, 65534])
    def test_one_of_a_user_who_is_not_mapped_is_nobodys(self, uid, model):
        """Also to the user who has the number as which all of these are shown."""
        done = self.run(model, self.volume(model, 1234, 0o777), uid=uid, gid=uid)
        assert f'"compiled": {ALL}' in done.stdout
        assert "/cache: belongs to a user whom this container does not map" in done.stderr
        assert "hint: set GPUCACHE_DIR to a directory of your own\n" in done.stderr

    def test_a_group_that_is_not_mapped_shares_nothing(self, model):
        """It is shown as one with all others that are not."""
        volumes = self.volume(model, 100000, 0o2770)
        os.chown(volumes["/cache"], 100000, 4321)
        command = "gpucache provision --root /cache --shared group"
        made = model.run(command, uid=100000, gid=4321, volumes=volumes)
        assert made.returncode == 0, made.stderr
        theirs = volumes["/cache"] / "gpucache/v1/store"
        os.chown(theirs, 1234, 4321)
        done = self.run(model, volumes, uid=0, gid=0)
        assert f"{theirs.name}: belongs to a user whom this container does not map" in done.stderr


class TestSurroundings:
    @pytest.mark.parametrize("home", ["/nonexistent", ""])
    def test_no_home_and_no_name_are_needed(self, home, model):
        env = {"HOME": home} if home else {}
        written = model.disk / f"home-{bool(home)}"
        written.mkdir()
        for expected in (ALL, 0):
            done = model.run(SERVE, uid=54321, env=env, layer=written)
            assert compiled(done) == expected
        assert (written / "tmp/torchinductor_uid_54321/gpucache").is_dir()

    def test_another_temporary_directory_has_the_root(self, model):
        elsewhere = empty_dir(model.disk)
        elsewhere.chmod(0o1777)
        env = {"TMPDIR": "/elsewhere"}
        for expected in (ALL, 0):
            done = model.run(SERVE, uid=54321, env=env, volumes={"/elsewhere": elsewhere})
            assert compiled(done) == expected

    def test_without_any_place_to_write_the_way_out_is_a_volume(self, model):
        done = model.run(SERVE, uid=54321, read_only=True)
        assert f'"compiled": {ALL}' in done.stdout
        assert (
            "hint: set GPUCACHE_DIR to a directory that can be written, such as a volume"
            in done.stderr
        )
