"""A file of settings to begin with, in which each line is a comment: what `gpucache config --init` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpucache.environment import VARIABLES, Variable

if TYPE_CHECKING:
    from gpucache.configuration.places import Source

EXAMPLES = {
    "dir": '"/scratch/kernels"',
    "disable": "true",
    "trust_uids": "[1000, 1001]",
    "trust_groups": "[1002]",
    "trust_world_writable": "true",
    "fallback": '"/shared/kernels"',
    "share": "true",
    "verify": '"always"',
    "require_hit": "true",
    "stall_timeout_s": "30",
    "lock_timeout_s": "300",
    "stamp_s": "300",
    "max_size": '"20GiB"',
    "inductor_max_size": '"10GiB"',
    "jit_max_size": '"20GiB"',
    "remember_key": "true",
    "remote": '"s3://bucket/kernels"',
    "remote_timeout_s": "1.5",
    "log": '"info"',
    "log_format": '"json"',
    "summary": "false",
    "sign_key": '"~/ci.key"',
    "trust_keys": '"~/trusted.keys"',
    "pack": '["llama"]',
    "caches": '["all"]',
    "nvml_timeout_s": "10",
}
"""A value of each setting, as TOML."""

_OF_A_ROOT = """\
# Settings of this root, for every process that uses it. They trust nobody and name no path: those are in
# ~/.config/gpucache/gpucache.toml and /etc/gpucache/gpucache.toml.
"""
_OF_A_USER = """\
# Settings of gpucache, for every process of this user. A variable of the environment is stronger, such as
# GPUCACHE_MAX_SIZE; /etc/gpucache/gpucache.toml is weaker. `gpucache config` shows what holds, and why.
"""


def template(source: Source) -> str:
    """The text of such a file: every setting that it may hold, with its meaning, its default and an example."""
    parts = [_OF_A_ROOT if source == "root" else _OF_A_USER]
    for variable in VARIABLES:
        if variable.in_root or (variable.in_file and source != "root"):
            parts.append(_paragraph(variable))
    return "\n".join(parts)


def _paragraph(variable: Variable[Any]) -> str:
    name = variable.name_in_file
    default = variable.default_text or "unset"
    if variable.in_file == "switch" and variable.default_text:
        default = "false"
    return f"# {variable.meaning}\n# default: {default}\n# {name} = {EXAMPLES[name]}\n"
