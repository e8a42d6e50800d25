"""Pods of Kubernetes and images of Dockerfiles, as the page on containers writes them, run as `containers` does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from support.containers import Image, empty_dir

Done = subprocess.CompletedProcess[str]


def section(page: str, heading: str) -> str:
    """The part of a page under a heading of the second level, up to the next."""
    (part,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    return str(part)


def blocks(page: str, heading: str, language: str) -> list[str]:
    """The blocks of code in a language under a heading."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(page, heading), re.M | re.S)


class Pod:
    """A pod of a manifest: its volumes are made once, its containers start as often as a test says."""

    def __init__(self, manifest: str, image: Image, shown: Mapping[str, Path] | None = None):
        """``shown`` are the directories of the volumes that are not made for the pod, by name."""
        self.spec: dict[str, Any] = yaml.safe_load(manifest)["spec"]
        self.image = image
        self.security: dict[str, Any] = self.spec.get("securityContext", {})
        self.volumes = dict(shown or {})
        for volume in self.spec.get("volumes", ()):
            if "emptyDir" in volume:
                self.volumes[volume["name"]] = empty_dir(image.disk, self.security.get("fsGroup"))

    def initialized(self) -> list[Done]:
        """Run the init containers, one after the other."""
        return [self._run(container, {}) for container in self.spec.get("initContainers", ())]

    def main(self, **changed: object) -> Done:
        """Run the first container, with parts of its security context changed."""
        return self._run(self.spec["containers"][0], changed)

    def _run(self, container: Mapping[str, Any], changed: Mapping[str, object]) -> Done:
        security = {**self.security, **container.get("securityContext", {}), **changed}
        groups = [*self.security.get("supplementalGroups", ())]
        if "fsGroup" in self.security:
            groups.append(self.security["fsGroup"])
        words = [*container["command"], *container.get("args", ())]
        mounts = {
            mount["mountPath"]: self.volumes[mount["name"]]
            for mount in container.get("volumeMounts", ())
        }
        return self.image.run(
            "cd /app && " + shlex.join(words),
            uid=security.get("runAsUser", 0),
            # A user without a passwd entry has the group 0 where the manifest names none.
            gid=security.get("runAsGroup", 0),
            groups=groups,
            env={variable["name"]: variable["value"] for variable in container.get("env", ())},
            volumes=mounts,
            read_only=security.get("readOnlyRootFilesystem", False),
        )


class Dockerfile:
    """What a Dockerfile says: an image with a layer for each ``RUN``, its environment, its user, its command."""

    def __init__(self, text: str, base: Image) -> None:
        self.image = base
        self.env: dict[str, str] = {}
        self.user = 0
        self.command = ""
        for line in text.replace("\\\n", " ").splitlines():
            word, _, rest = line.strip().partition(" ")
            if word == "ENV":
                self.env |= dict(part.split("=", 1) for part in shlex.split(rest))
            elif word == "USER":
                self.user = int(rest)
            elif word == "RUN":
                self.image = self.image.built(f"cd /app && {rest}", uid=self.user, env=self.env)
            elif word == "CMD":
                self.command = "cd /app && " + shlex.join(json.loads(rest))
            else:
                assert word in ("FROM", "#", ""), line

    def run(self, uid: int | None = None, gid: int = 0, **options: Any) -> Done:
        """Start a container of the image, as its user or another."""
        return self.image.run(
            self.command, uid=self.user if uid is None else uid, gid=gid, env=self.env, **options
        )


def compiled(done: Done) -> int:
    """How many kernels the program of a container has compiled; it ran well, and was told nothing that is wrong."""
    assert done.returncode == 0, done.stderr
    assert unexpected(done) == []
    return int(json.loads(done.stdout.splitlines()[-1])["compiled"])


def unexpected(done: Done) -> list[str]:
    """What was said, but that the devices are fake, that a file system is read-only, and what ``unpack`` has done."""
    expected = (
        "devices are fake",
        "read-only file system",
        "torch caches where it does by default",
    )
    return [
        line for line in done.stderr.splitlines() if not any(known in line for known in expected)
    ]
