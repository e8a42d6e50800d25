"""Each claim of the page on trust, in the page's words."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from support.cli import Command
from support.launches import another_process, kernel, launched
from support.processes import PATIENCE_S, python_path
from support.read_through import VERSION, Entries, couriers, end_couriers
from support.users import BOB

from gpucache.remote.question import Answer, Question

PAGE = (Path(__file__).parents[1] / "docs/trust.md").read_text(encoding="utf-8")
CLAIMS = [" ".join(text.split()) for text in re.findall(r"^- \*\*(.+?)\*\*", PAGE, re.M | re.S)]
SHOWN: dict[str, Callable[..., None]] = {}


def shows(claim: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator of the test that shows a claim of the page."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        SHOWN.setdefault(claim, test)
        return test

    return register


class Writer:
    """Who compiles for others: a root with six kernels, and a key of the name ``ci``."""

    def __init__(self, directory: Path, here: Command) -> None:
        self.directory, self.here = directory, here
        self.public = here("keygen", "ci").out.strip()
        self.root = directory / "root"

    def pack(self, name: str = "kernels", key: str | None = "ci.key", **more: object) -> Path:
        """A pack of all six, signed with the key in a file here."""
        file = self.directory / f"{name}.tar.zst"
        options = [word for option, value in more.items() for word in (f"--{option}", value)]
        with pytest.MonkeyPatch.context() as patch:
            if key:
                patch.setenv("GPUCACHE_SIGN_KEY", key)
            done = self.here("pack", "-o", file, "--root", self.root, *options)
        assert done.code == 0, done.err
        return file


@pytest.fixture
def writer(
    keys: list[str], tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> Writer:
    monkeypatch.chdir(tmp_path)
    made = Writer(tmp_path, here)
    monkeypatch.setenv("GPUCACHE_TRUST_KEYS", made.public)
    return made


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """The root of who reads; nothing is there."""
    return tmp_path / "reader"


def stored(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("gpucache/v1/store/*/*"))


def refused(here: Command, file: Path, root: Path, *words: str) -> str:
    """Why a pack is not taken, of which nothing is."""
    done = here("unpack", file, "--root", root, *words)
    assert done.code == 1, done
    assert stored(root) == []
    return done.err


@shows("Nothing is encrypted: who reads the remote reads your kernels.")
def test_who_reads_a_pack_reads_the_kernels(writer: Writer) -> None:
    content = zstandard.ZstdDecompressor().stream_reader(writer.pack().read_bytes()).read()
    ptx = next(writer.root.glob("gpucache/v1/store/*/*/add_kernel.ptx")).read_bytes()
    assert ptx in content


@shows("gpucache adds no user, no machine and no secret to a pack.")
def test_gpucache_adds_no_user_no_machine_and_no_secret(writer: Writer, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-of-the-bucket")
    content = zstandard.ZstdDecompressor().stream_reader(writer.pack().read_bytes()).read()
    secret = Path("ci.key").read_text().strip().rpartition(":")[2]
    unsaid = [secret, "the-secret-of-the-bucket", str(writer.root), socket.gethostname()]
    assert [word for word in unsaid if says(content, word)] == []
    owners = {content[at + 108 : at + 124] for at in headers(content)}
    assert owners == {b"0000000\0" * 2}
    named = {content[at + 265 : at + 329].strip(b"\0") for at in headers(content)}
    assert named == {b""}


def says(content: bytes, word: str) -> bool:
    """Whether a word is there, and not as letters of a signature: a host may be called ``vm``."""
    return re.search(rb"(?<![\w-])" + re.escape(word.encode()) + rb"(?![\w-])", content) is not None


def headers(archive: bytes) -> list[int]:
    """Where the headers of an archive's members are."""
    return [match.start() - 257 for match in re.finditer(rb"ustar\x0000", archive)]


@shows("What a stranger has signed, or nobody, is not taken.")
def test_what_a_stranger_has_signed_or_nobody_is_not_taken(
    writer: Writer, reader: Path, here: Command
) -> None:
    here("keygen", "stranger")
    said = refused(here, writer.pack("strange", key="stranger.key"), reader)
    assert "it is signed by stranger, and only ci is believed" in said
    assert "nobody has signed it" in refused(here, writer.pack("unsigned", key=None), reader)


@shows("One changed byte is refused")
def test_one_changed_byte_is_refused(writer: Writer, reader: Path, here: Command) -> None:
    """Also of what is compressed, and compressed anew. What comes before it in the pack is whole, and may be there."""
    file = writer.pack()
    data = file.read_bytes()
    content = zstandard.ZstdDecompressor().stream_reader(data).read()
    places = {
        "the statement": 600,
        "the signature": content.index(b"gpucache-pack.sig") + 512 + 60,
        "a header": content.rindex(b"ustar") + 100,
        "a file": content.rindex(b"ustar") + 300,
        "the end": -1,
    }
    for at in places.values():
        changed = bytearray(content)
        changed[at] ^= 1
        file.write_bytes(zstandard.compress(bytes(changed)))
        assert here("unpack", file, "--root", reader).code == 1
    file.write_bytes(data + b"!")
    assert here("unpack", file, "--root", reader).code == 1
    file.write_bytes(data)
    assert here("verify", "--root", reader).code == 0
    assert here("unpack", file, "--root", reader).code == 0


@shows("Somebody's key of a trusted name is not the trusted key.")
def test_a_name_makes_no_key(writer: Writer, reader: Path, here: Command) -> None:
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    here("keygen", "ci")
    os.chdir("..")
    said = refused(here, writer.pack(key="elsewhere/ci.key"), reader)
    assert "its signature is not that of ci" in said


@shows("An old pack is signed, and is taken; that it is old is told")
def test_an_old_pack_is_taken_and_told(writer: Writer, reader: Path, here: Command) -> None:
    old = writer.pack(number=1)
    shutil.copy(old, "old.tar.zst")
    new = writer.pack(number=2)
    assert "older" not in here("unpack", new, "--root", reader).err
    done = here("unpack", "old.tar.zst", "--root", reader)
    assert done.code == 0
    assert "is number 1 of kernels, and number 2 was seen here: an older pack" in done.err


@shows("A launch opens no private key, also where what it compiles is pushed.")
def test_a_launch_opens_no_private_key(writer: Writer, reader: Path) -> None:
    """The kernel is on its way to the remote all the same, by the name of an empty file."""
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
from gpucache.remote import write_behind
write_behind.LEAST_COMPILE_S = 0
write_behind.start_beside = lambda *_: None
from support.launches import kernel, launched
assert not launched(*kernel("first"))[0]
assert any("/outbox/" in path for path in opened)
assert not any(path.endswith("ci.key") for path in opened)
"""
    changed = {
        "GPUCACHE_DIR": str(reader),
        "TRITON_CACHE_DIR": str(reader / "triton/0"),
        "GPUCACHE_REMOTE": f"file://{writer.directory}?mode=write",
        "GPUCACHE_SIGN_KEY": str(writer.directory / "ci.key"),
        "PYTHONPATH": python_path(Path(__file__).parent),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **changed}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(reader.glob("gpucache/v1/outbox/*/*"))) == 1


@shows("A key file that others can read is refused")
def test_a_key_that_others_can_read_is_refused(writer: Writer, here: Command, monkeypatch) -> None:
    assert Path("ci.key").stat().st_mode & 0o777 == 0o600
    Path("ci.key").chmod(0o644)
    monkeypatch.setenv("GPUCACHE_SIGN_KEY", "ci.key")
    done = here("pack", "-o", "x.tar.zst", "--root", writer.root)
    assert done.code == 1
    assert "others can read or write this secret key (mode 0644)" in done.err


@shows("Who is trusted no more is read no more.")
def test_who_is_trusted_no_more_is_read_no_more(
    writer: Writer, reader: Path, here: Command, monkeypatch
) -> None:
    taken = writer.pack("taken", kernel="add_kernel")
    assert here("unpack", taken, "--root", reader).code == 0
    before = stored(reader)
    monkeypatch.setenv("GPUCACHE_TRUST_KEYS", here("keygen", "new").out.strip())
    assert here("unpack", writer.pack(), "--root", reader).code == 1
    assert stored(reader) == before != []
    assert here("clean", "--yes", "--force", "--root", reader).code == 0
    assert stored(reader) == []


@shows("A rotation has both keys for a while")
def test_a_rotation_has_both_keys_for_a_while(
    writer: Writer, reader: Path, here: Command, monkeypatch
) -> None:
    new = here("keygen", "ci-2026").out.strip()
    monkeypatch.setenv("GPUCACHE_TRUST_KEYS", f"{writer.public},{new}")
    for name, key in (("old", "ci.key"), ("new", "ci-2026.key")):
        assert here("unpack", writer.pack(name, key=key), "--root", reader).code == 0
    text = new.partition(":")[2]
    for wrong in (f"{writer.public},ci:{text}", f"{new},other:{text}"):
        monkeypatch.setenv("GPUCACHE_TRUST_KEYS", wrong)
        assert here("unpack", "new.tar.zst", "--root", reader).code == 1


@shows(
    "An unsigned pack is taken only where you say so, and from a file that only you could have written"
)
@pytest.mark.root
def test_an_unsigned_pack_of_another_user_is_refused(
    writer: Writer, reader: Path, here: Command, as_root: None
) -> None:
    file = writer.pack(key=None)
    assert "nobody has signed it" in refused(here, file, reader)
    os.chown(file, BOB, BOB)
    assert f"belongs to uid {BOB}" in refused(here, file, reader, "--unsigned")
    os.chown(file, 0, 0)
    file.chmod(0o666)
    assert "everybody may write it" in refused(here, file, reader, "--unsigned")
    file.chmod(0o644)
    assert here("unpack", file, "--root", reader, "--unsigned").code == 0


KEY, FILES = kernel("first")
OTHER, OTHER_FILES = kernel("second")


@pytest.fixture
def remote(everyones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entries]:
    """A remote from which the launches of this process read, into a root that every user could reach."""
    made = Entries.signed(tmp_path)
    root = everyones / "root"
    environ = {
        **made.environ,
        "GPUCACHE_DIR": str(root),
        "TRITON_CACHE_DIR": str(root / "triton/0"),
        "GPUCACHE_REMOTE_TIMEOUT_S": str(PATIENCE_S),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__=VERSION))
    another_process(monkeypatch)
    yield made
    end_couriers(root)


@shows("A good entry is no good under another name.")
def test_a_good_entry_is_no_good_under_another_name(remote: Entries) -> None:
    remote.put(KEY, remote.packed(OTHER, OTHER_FILES))
    assert launched(KEY, FILES) == (False, FILES)
    remote.put(OTHER, remote.packed(OTHER, OTHER_FILES, version="3.8.0"))
    assert launched(OTHER, OTHER_FILES) == (False, OTHER_FILES)


@shows("What is refused costs its kernel's compile, and bounded memory.")
def test_what_is_refused_costs_a_compile_and_bounded_memory(
    remote: Entries, everyones: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote.put(KEY, zstandard.compress(b"\0" * (300 << 20)))
    assert launched(KEY, FILES) == (False, FILES)
    (pid,) = couriers(everyones / "root")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert int(peak) < 150 << 10
    (said,) = (one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "is refused" in said


@shows("What is taken away is compiled again.")
def test_what_is_taken_away_is_compiled_again(remote: Entries) -> None:
    remote.add(KEY, FILES)
    remote.path(KEY).unlink()
    assert launched(KEY, FILES) == (False, FILES)


@shows("A trusted key is the right to run code on every machine that trusts it.")
def test_whatever_a_trusted_key_has_signed_is_taken(remote: Entries) -> None:
    planted = {**FILES, "add.ptx": b"anything at all"}
    remote.add(KEY, planted)
    assert launched(KEY, FILES) == (True, planted)


@shows("Another user cannot answer in the place of the node's courier, nor ask it.")
@pytest.mark.root
def test_another_user_cannot_ask_the_courier(
    remote: Entries, everyones: Path, as_root: None
) -> None:
    """Not even where every directory and the socket itself are opened to all; of answers: `test_read_through`."""
    remote.add(KEY, FILES)
    assert launched(KEY, FILES)[0]
    (path,) = everyones.glob("root/gpucache/v1/locks/remote-*.socket")
    assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0
    for opened in (path, *list(path.parents)[:4]):
        opened.chmod(0o777)
    question = Question(OTHER, VERSION, PATIENCE_S).encoded()
    for user, answer in ((BOB, b""), (0, Answer("miss").encoded())):
        assert said_to(path, user, question) == answer


def said_to(path: Path, user: int, question: bytes) -> bytes:
    """What a socket answers to a process of a user."""
    code = "import os, socket, sys\n"
    code += "os.setuid(int(sys.argv[1])); asking = socket.socket(socket.AF_UNIX)\n"
    code += "asking.settimeout(60); asking.connect(sys.argv[2])\n"
    code += "answer = b''\ntry:\n"
    code += "    asking.sendall(bytes.fromhex(sys.argv[3])); answer = asking.recv(1000)\n"
    code += "except (ConnectionResetError, BrokenPipeError):\n    pass\nprint(answer.hex())"
    words = [sys.executable, "-c", code, str(user), str(path), question.hex()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return bytes.fromhex(done.stdout)


def test_each_claim_of_the_page_is_shown_here() -> None:
    assert sorted(SHOWN) == sorted(CLAIMS)
