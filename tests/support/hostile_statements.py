"""Hostile packs whose statement is signed, and makes no sense."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from gpucache.archive.signature import SigningKey
from support.hostile_parts import Case, Parts, zst
from support.packs import key

NAN, INFINITE = float("nan"), float("inf")
SHA = "0" * 64


def cases(signing: SigningKey) -> Iterator[Case]:
    def made(parts: Parts) -> Callable[[], bytes]:
        return lambda: zst(parts.tar())

    for name, code, fact, change in HEADS:
        parts = Parts(signing).edit(lambda head, _, change=change: head.update(change))
        yield Case(f"statement: {name}", code, fact, made(parts))
    for name, code, fact, change in ENTRIES:
        parts = Parts(signing).edit(lambda _, entries, change=change: entries[1].update(change))
        yield Case(f"entry: {name}", code, fact, made(parts))
    for name, code, fact, listed in FILES:
        parts = Parts(signing).edit(lambda _, entries, listed=listed: _list(entries[1], listed))
        yield Case(f"file: {name}", code, fact, made(parts))
    for name, code, fact, text in layouts(signing):
        parts = Parts(signing)
        parts.statement = text
        yield Case(f"layout: {name}", code, fact, made(parts))
    for name, code, fact, entry in KINDS:
        parts = Parts(signing).edit(lambda _, entries, entry=entry: entries.append(entry))
        yield Case(f"kind: {name}", code, fact, made(parts))
    yield Case(
        "a key twice", "repeated-key", "is there twice", made(Parts(signing).edit(_repeat_key))
    )
    for field in ("key", "kind", "kernel", "files", "tag"):  # left out
        parts = Parts(signing).edit(lambda _, entries, field=field: entries[1].pop(field))
        what = "value" if field != "files" else "no list"
        yield Case(
            f"entry: {field} left out", "value", "no " if what == "value" else what, made(parts)
        )
    for field, code in (
        ("format", "format"),
        ("version", "version"),
        ("name", "value"),
        ("number", "value"),
    ):
        parts = Parts(signing).edit(lambda head, _, field=field: head.pop(field))
        yield Case(f"statement: no {field}", code, "the statement", made(parts))


def _list(entry: dict, listed: object) -> None:
    entry["files"].append(listed)


def _repeat_key(_: dict, entries: list) -> None:
    entries[1]["key"] = entries[0]["key"]


HEADS = [
    ("version 2", "version", "of version 2", {"version": 2}),
    ("version 0", "version", "of version 0", {"version": 0}),
    ("version true", "version", "no whole number", {"version": True}),
    ("version 1.0", "version", "no whole number", {"version": 1.0}),
    ("version as a text", "version", "no whole number", {"version": "1"}),
    ("another format", "format", "another format", {"format": "gpucache recipes"}),
    ("a list for a format", "format", "another format", {"format": ["gpucache pack"]}),
    ("a name that leads out", "value", "name is not that of a pack", {"name": ".."}),
    ("a name with a slash", "value", "name is not", {"name": "a/b"}),
    ("a name with an escape", "value", "name is not", {"name": "a\x1b[2J"}),
    ("a name of 129 letters", "value", "name is not", {"name": "a" * 129}),
    ("half a letter for a name", "value", "name is not", {"name": "\ud800"}),
    ("a number for a name", "value", "name is not", {"name": 1}),
    ("null for a name", "value", "name is not", {"name": None}),
    ("number -1", "value", "number is no whole number", {"number": -1}),
    ("number true", "value", "number is no whole", {"number": True}),
    ("number 1.0", "value", "number is no whole", {"number": 1.0}),
    ("number infinite", "json", "Infinity", {"number": INFINITE}),
    ("number as a text", "value", "number is no whole", {"number": "1"}),
    ("number 2^63", "value", "number is no whole", {"number": 2**63}),
    ("number of 400 digits", "json", "more than 20 digits", {"number": 10**400}),
    ("number NaN", "json", "NaN", {"number": NAN}),
]
ENTRIES = [
    ("an unknown kind", "kind", "'cubin', which is not known", {"kind": "cubin"}),
    ("a list for a kind", "value", "its kind is no text", {"kind": ["kernel"]}),
    ("a short key", "key", "none of Triton's", {"key": "ABC"}),
    ("a key that leads out", "key", "none of Triton's", {"key": "../../../etc"}),
    ("an absolute key", "key", "none of Triton's", {"key": "/etc/passwd"}),
    ("a key with a new line", "text", "cannot be shown", {"key": key(1) + "\n"}),
    ("a key of small letters", "key", "none of Triton's", {"key": key(1).lower()}),
    ("an empty key", "key", "none of Triton's", {"key": ""}),
    ("a number for a key", "value", "its key is no text", {"key": 1}),
    ("another arch", "value", "arch is not that of its target", {"arch": "sm_80"}),
    ("no arch", "value", "arch is not", {"arch": None}),
    ("a list for an arch", "value", "arch is not", {"arch": ["sm_90"]}),
    ("another target", "value", "arch is not", {"target": "cuda:80"}),
    ("a number for a target", "value", "target is no text", {"target": 90}),
    ("a target with an escape", "text", "target", {"target": "\x1b]0;x\x07:90"}),
    ("a number for a kernel", "value", "its kernel is no text", {"kernel": 1}),
    ("null for a kernel", "value", "its kernel is no text", {"kernel": None}),
    ("half a letter for a kernel", "text", "'\\ud800' cannot be shown", {"kernel": "\ud800"}),
    ("a kernel from right to left", "text", "'\\u202e", {"kernel": "\u202eexe"}),
    ("a kernel of 1,001 letters", "text", "more than 1000 letters", {"kernel": "k" * 1001}),
    ("a list for a version", "value", "triton_version is no text", {"triton_version": [3, 9]}),
    ("a version with a new line", "text", "cannot be shown", {"triton_version": "3.9\n"}),
    ("null for a tag", "value", "its tag is no text", {"tag": None}),
    ("a tag with a NUL", "text", "its tag '\\x00'", {"tag": "\0"}),
    ("no group", "group", "a kernel has a group", {"group": None}),
    ("a group that is no file", "group", "none of its files", {"group": "other.json"}),
    ("a group that leads out", "group", "none of its files", {"group": "../sub.json"}),
    ("a number for a group", "value", "its group is no text", {"group": 1}),
    ("seconds below 0", "value", "compile_s", {"compile_s": -1}),
    ("seconds that are true", "value", "compile_s", {"compile_s": True}),
    ("seconds as a text", "value", "compile_s", {"compile_s": "1"}),
    ("a list of seconds", "value", "compile_s", {"compile_s": [1]}),
    ("seconds NaN", "json", "NaN", {"compile_s": NAN}),
    ("seconds for ever", "json", "Infinity", {"compile_s": INFINITE}),
    ("no files", "value", "it has no files", {"files": []}),
    ("files by name", "value", "files are no list", {"files": {"a.json": [1, SHA]}}),
    ("null for files", "value", "files are no list", {"files": None}),
    ("a list for what it fits", "fits", "no object", {"fits": ["sm_90"]}),
    ("null for what it fits", "fits", "no object", {"fits": None}),
    ("what it fits is a number", "fits", "'libc', is no text", {"fits": {"libc": 2}}),
    ("what it fits has an escape", "text", "its fits", {"fits": {"libc": "\x1b"}}),
    ("17 that it fits", "fits", "at most 16", {"fits": {str(n): "" for n in range(17)}}),
    ("a text for a recipe", "value", "its recipe is not listed", {"recipe": "x"}),
    (
        "an object for a recipe",
        "value",
        "its recipe is not listed",
        {"recipe": {"a": 1, "b": 1, "c": 1}},
    ),
    ("a recipe by another name", "value", "its recipe is not listed", {"recipe": ["x", 1, SHA]}),
    ("a recipe without a digest", "value", "its recipe", {"recipe": ["__recipe__.json", 1]}),
    (
        "a recipe of a size below 0",
        "size",
        "no whole number",
        {"recipe": ["__recipe__.json", -1, SHA]},
    ),
    ("a recipe of 2 MiB", "size", "recipe has more", {"recipe": ["__recipe__.json", 2**21, SHA]}),
]

FILES = [
    ("a text", "value", "not listed as name", "x"),
    ("null", "value", "not listed", None),
    ("an object", "value", "not listed", {"name": "x", "size": 1, "sha256": SHA}),
    ("a text of three letters", "value", "not listed", "xyz"),
    ("two values", "value", "not listed", ["x", 1]),
    ("four values", "value", "not listed", ["x", 1, SHA, 0]),
    ("a number for a name", "file-name", "is no text", [1, 1, SHA]),
    ("null for a name", "file-name", "is no text", [None, 1, SHA]),
    ("an empty name", "file-name", "'' leads elsewhere", ["", 1, SHA]),
    ("a dot", "file-name", "'.' leads elsewhere", [".", 1, SHA]),
    ("two dots", "file-name", "'..' leads elsewhere", ["..", 1, SHA]),
    ("a name that leads out", "file-name", "leads elsewhere", ["../../x", 1, SHA]),
    ("an absolute name", "file-name", "leads elsewhere", ["/etc/passwd", 1, SHA]),
    ("a name with a slash", "file-name", "leads elsewhere", ["a/b", 1, SHA]),
    ("a name with a NUL", "text", "cannot be shown", ["a\0b", 1, SHA]),
    ("a name with an escape", "text", "'\\x1b[2J'", ["\x1b[2J", 1, SHA]),
    ("a name with a new line", "text", "cannot be shown", ["a\nb", 1, SHA]),
    ("half a letter", "text", "'\\udcff'", ["\udcff", 1, SHA]),
    ("a name from right to left", "text", "cannot be shown", ["a\u202eb", 1, SHA]),
    ("a name of 249 bytes", "file-name", "is too long", ["ä" * 124 + "b", 1, SHA]),
    ("a name of 1,001 letters", "text", "more than 1000", ["a" * 1001, 1, SHA]),
    ("the manifest's name", "file-name", "gpucache's own", ["__entry__.json", 1, SHA]),
    ("a removed manifest's name", "file-name", "own", ["__entry__.json.removed", 1, SHA]),
    ("the recipe's name", "file-name", "own", ["__recipe__.json", 1, SHA]),
    ("the group file's name", "file-name", "group file", ["__grp__sub.json", 1, SHA]),
    ("another group file's name", "file-name", "group file", ["__grp__other.json", 1, SHA]),
    ("a name that is there", "repeated-name", "two files of one name", ["sub.json", 1, SHA]),
    ("size -1", "size", "no whole number", ["x", -1, SHA]),
    ("size true", "size", "no whole number", ["x", True, SHA]),
    ("size 1.0", "size", "no whole number", ["x", 1.0, SHA]),
    ("size as a text", "size", "no whole number", ["x", "1", SHA]),
    ("size null", "size", "no whole number", ["x", None, SHA]),
    ("size 1 GiB and a byte", "size", "no whole number", ["x", 2**30 + 1, SHA]),
    ("size 2^64 - 1", "size", "no whole number", ["x", 2**64 - 1, SHA]),
    ("size of 1,000 digits", "json", "more than 20 digits", ["x", 10**1000, SHA]),
    ("size NaN", "json", "NaN", ["x", NAN, SHA]),
    ("size infinite", "json", "Infinity", ["x", INFINITE, SHA]),
    ("size below infinite", "json", "-Infinity", ["x", -INFINITE, SHA]),
    ("no digest", "digest", "none of SHA-256", ["x", 1, None]),
    ("an empty digest", "digest", "none of SHA-256", ["x", 1, ""]),
    ("a digest of MD5", "digest", "none of SHA-256", ["x", 1, "0" * 32]),
    ("a digest in capitals", "digest", "none of SHA-256", ["x", 1, "A" * 64]),
    ("a digest with a new line", "digest", "none of SHA-256", ["x", 1, SHA + "\n"]),
    ("a number for a digest", "digest", "none of SHA-256", ["x", 1, 0]),
]

ALONE = {
    "key": key(9),
    "kind": "library",
    "arch": None,
    "kernel": "launcher.so",
    "group": None,
    "target": None,
    "triton_version": "3.9.0",
    "compile_s": None,
    "tag": "",
    "files": [["launcher.so", 1, SHA]],
    "fits": {"machine": "x86_64", "abi": "cpython-311", "libc": "glibc-2.36"},
}
AUTOTUNE = {
    **ALONE,
    "kind": "autotune",
    "kernel": "a.autotune.json",
    "files": [["a.autotune.json", 1, SHA]],
    "fits": {"device": "NVIDIA H100"},
}
UNIT = "cab" + "a" * 48
INDUCTOR = {
    **ALONE,
    "key": "",
    "kind": "inductor",
    "kernel": UNIT,
    "files": [[f"ab/{UNIT}.py", 1, SHA]],
    "fits": {},
}


def _inductor(name: str) -> dict:
    return {**INDUCTOR, "files": [[name, 1, SHA]]}


KINDS = [
    ("a library that fits everywhere", "fits", "abi, libc, machine", {**ALONE, "fits": {}}),
    ("a library without its libc", "fits", "libc", {**ALONE, "fits": {"machine": "x", "abi": "y"}}),
    ("a library with a group", "group", "nothing else has one", {**ALONE, "group": "launcher.so"}),
    ("a library of another name", "group", "not the one", {**ALONE, "kernel": "other.so"}),
    (
        "a library of two files",
        "group",
        "not the one",
        {**ALONE, "files": [*ALONE["files"], ["b.so", 1, SHA]]},
    ),
    (
        "a library that is no .so",
        "kind",
        "end in .so",
        {**AUTOTUNE, "kind": "library", "fits": ALONE["fits"]},
    ),
    ("autotuning for any device", "fits", "device", {**AUTOTUNE, "fits": {}}),
    (
        "a library said to be autotuning",
        "kind",
        "end in .autotune.json",
        {**ALONE, "kind": "autotune"},
    ),
    ("a graph with a key", "key", "none of Triton's", {**INDUCTOR, "key": key(9)}),
    ("a library without a key", "key", "none of Triton's", {**ALONE, "key": ""}),
    ("a graph with a group", "group", "nothing else", {**INDUCTOR, "group": f"ab/{UNIT}.py"}),
    ("a graph that leads out", "file-name", "leads elsewhere", _inductor("fxgraph/../../x")),
    ("a graph with an absolute name", "file-name", "leads elsewhere", _inductor("/etc/passwd")),
    ("a graph with two slashes", "file-name", "leads elsewhere", _inductor("fxgraph//x")),
    ("a graph with a slash at its end", "file-name", "leads elsewhere", _inductor("fxgraph/x/")),
    ("a graph with a manifest", "file-name", "own", _inductor("fxgraph/__entry__.json")),
    (
        "a graph with a lock",
        "file-name",
        "no name of TorchInductor's",
        _inductor(f"locks/{UNIT}.lock"),
    ),
    ("a graph with a header", "file-name", "no name of", _inductor("precompiled_headers/x.h")),
    ("a graph of a file elsewhere", "file-name", "no name of", _inductor(f"triton/0/{UNIT}.py")),
    ("a graph with code of another unit", "group", "another unit", _inductor(f"ab/{UNIT}a.py")),
    (
        "a graph with a recipe",
        "value",
        "not TorchInductor's",
        {**INDUCTOR, "recipe": ["__recipe__.json", 1, SHA]},
    ),
    ("a text for an entry", "json", "no object of JSON", "kernel"),
    ("null for an entry", "json", "no object of JSON", None),
    ("a list for an entry", "json", "no object of JSON", [ALONE]),
]


def layouts(signing: SigningKey) -> Iterator[tuple[str, str, str, bytes]]:
    """Statements whose text is not laid out as one is."""
    good = Parts(signing).statement
    head, one, two, end, _ = good.split(b"\n")

    def lines(*texts: bytes) -> bytes:
        return b"\n".join(texts) + b"\n"

    yield "nothing", "format", "first line", b""
    yield "an empty line", "format", "first line", b"\n"
    yield "no JSON", "format", "last line has no end", b"hello"
    yield "a list", "format", "first line", lines(b"[", end)
    yield "no end", "format", "no end", lines(head, one, two)
    yield "no last newline", "format", "last line has no end", good[:-1]
    yield "more after the end", "format", "after its end", good + b"\n"
    yield "two statements", "format", "after its end", good + good
    yield "no comma", "format", "no comma", lines(head, one[:-1], two, end)
    yield "a comma at the end", "json", "no JSON", lines(head, one, two + b",", end)
    yield "an empty line within", "format", "no comma", lines(head, one, b"", two, end)
    yield "an empty line before the end", "format", "no comma", lines(head, one, two, b"", end)
    yield "on one line", "format", "first line", good.replace(b"\n", b"") + b"\n"
    yield "two entries on a line", "json", "no JSON", lines(head, one + two, end)
    yield "ends of lines as Windows has them", "format", "first line", good.replace(b"\n", b"\r\n")
    yield "a mark of the byte order", "encoding", "not ASCII", b"\xef\xbb\xbf" + good
    yield "UTF-16", "format", "", good.decode().encode("utf-16-le")
    yield "UTF-8", "encoding", "not ASCII", good.replace(b'"tag":""', b'"tag":"\xc3\xa4"')
    yield "Latin 1", "encoding", "not ASCII", good.replace(b'"tag":""', b'"tag":"\xe4"')
    yield "NULs", "json", "no JSON", good.replace(b'"tag":""', b'"tag":"\0"')
    yield "half of an entry", "json", "no JSON", lines(head, one[:100] + b",", two, end)
    yield (
        "a name twice in an entry",
        "json",
        "one name twice",
        good.replace(b'"tag":""', b'"tag":"","tag":"x"'),
    )
    yield (
        "a name twice in the head",
        "json",
        "one name twice",
        good.replace(b'"number":1', b'"number":1,"number":2'),
    )
    hidden = b'"entries":[],"x":['
    yield "entries under another name", "format", "first line", good.replace(b'"entries":[', hidden)
    escaped = head.replace(b',"entries":[', b',"entries":[],"a\\"entries":[')
    yield "entries under a name that ends so", "format", "first line", lines(escaped, one, two, end)
    yield "nested lists", "json", "nested too deeply", lines(head, b"[" * 500_000, end)
    yield "nested objects", "json", "nested too deeply", lines(head, b'{"a":' * 200_000, end)
    deep = b'"kind":' + b"[" * 900 + b"]" * 900
    yield "a deep kind", "value", "its kind is no text", good.replace(b'"kind":"kernel"', deep)
    yield (
        "a deep version",
        "version",
        "no whole",
        good.replace(b'"version":1', deep.replace(b"kind", b"version")),
    )
    number = b'"tag":' + b"9" * 900_000
    yield (
        "a number of 900,000 digits",
        "json",
        "more than 20 digits",
        good.replace(b'"tag":""', number),
    )
    fraction = b'"compile_s":0.' + b"9" * 900_000
    yield (
        "a fraction of 900,000 digits",
        "json",
        "more than 40 digits",
        good.replace(b'"compile_s":0.25', fraction),
    )
    yield (
        "seconds of 1e999",
        "value",
        "compile_s",
        good.replace(b'"compile_s":0.25', b'"compile_s":1e999'),
    )
    long = json.dumps("x" * 2**20).encode()
    yield "a line of a MiB", "too-long", "a line of more than", lines(head, long, end)


__all__ = ["cases"]
