"""What `pack --format mcv` says of the layer that it writes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.common import counted
from gpucache.cli.terminal import print_data, say
from gpucache.units import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpucache.report.entries import Entry
    from gpucache.transfer.mcv import Layer


def check_alone(**options: object) -> None:
    """Refuse options for which an image's layer has no place.

    Raises:
        UsageError: one was given.
    """
    for name, value in options.items():
        if value:
            said = "a layer of an image has no place for it"
            raise click.UsageError(f"--{name} and --format mcv do not go together: {said}")


def of_layout(entries: Sequence[Entry]) -> list[Entry]:
    """The entries for which the layout has a place."""
    from gpucache.transfer.mcv import KINDS

    return [entry for entry in entries if entry.kind in KINDS]


def layer_row(layer: Layer) -> dict[str, Any]:
    """What was written, for JSON."""
    return {"kernels": layer.kernels, "bytes": layer.cache_bytes, "labels": layer.labels}


def tell_layer(layer: Layer, output: str, packed_bytes: int, is_stream: bool) -> None:
    """Say what was written, and print the Dockerfile of the image unless stdout has the layer itself."""
    many = counted(layer.kernels, "kernel", "kernels")
    sizes = f"{size(layer.cache_bytes)} as {size(packed_bytes)}"
    if is_stream:
        say(f"note: packed {many}, {sizes}: a layer in MCV's layout, not signed")
        return
    print_data(layer.dockerfile(os.path.basename(output)).rstrip("\n"))
    say(
        f"note: packed {many}, {sizes}: a layer in MCV's layout, not signed; stdout has its Dockerfile"
    )
