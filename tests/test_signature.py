"""Whom a reader believes: the list of public keys, the file of a secret one, and what a signature is good for."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from gpucache.archive import key_files, signature
from gpucache.archive.errors import BadKey, BadPack
from gpucache.archive.signature import (
    Signature,
    SigningKey,
    encoded_signatures,
    is_key_name,
    make_key,
    parsed_signatures,
)
from gpucache.archive.trusted_keys import WEAK_POINTS, TrustedKeys
from gpucache.disk.vetting import Trust
from gpucache.errors import ConfigurationError, NotInstalledError

OTHER_UID = 65533
MESSAGE = b"what is signed"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "ci.key")


@pytest.fixture
def ci(path):
    return make_key("ci", path)


@pytest.fixture
def nightly(tmp_path):
    return make_key("nightly", str(tmp_path / "nightly.key"))


def secret_of(path):
    with open(path) as file:
        return file.read().strip().rpartition(":")[2]


def refused(code, call, *arguments, **named) -> BadKey:
    with pytest.raises(BadKey) as error:
        call(*arguments, **named)
    assert error.value.code == code
    assert error.value.hint
    assert pickle.loads(pickle.dumps(error.value)).code == code
    return error.value


# ---- the secret key


def test_a_key_that_was_written_signs_what_its_public_text_believes(path, ci):
    again = SigningKey.read(path)
    assert again.public_text == ci.public_text
    trusted = TrustedKeys.parse(again.public_text)
    assert trusted.judge(MESSAGE, [again.sign(MESSAGE)]) == "ci"


def test_a_secret_key_is_its_owners_alone_whatever_the_umask(path):
    before = os.umask(0)
    try:
        make_key("ci", path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_secret_key_is_never_written_over_another_file(path, ci):
    before = secret_of(path)
    refused("exists", make_key, "ci", path)
    assert secret_of(path) == before


def test_a_secret_key_is_not_written_through_a_link(tmp_path, path):
    os.symlink(tmp_path / "elsewhere", path)
    refused("exists", make_key, "ci", path)
    assert not os.path.lexists(tmp_path / "elsewhere")


def test_no_half_of_a_secret_key_is_left_on_a_full_disk(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(key_files.os, "fsync", full)
    error = refused("unwritable", make_key, "ci", path)
    assert "No space left" in error.fact
    assert not os.path.lexists(path)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o620, 0o644, 0o660, 0o777])
def test_a_secret_key_that_others_can_read_or_write_is_refused(path, ci, mode):
    os.chmod(path, mode)
    error = refused("readable", SigningKey.read, path)
    assert f"mode {mode:04o}" in error.fact
    assert f"chmod 600 {path}" in error.hint
    assert secret_of(path) not in str(error)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_secret_key_of_its_owner_alone_is_read(path, ci, mode):
    os.chmod(path, mode)
    assert SigningKey.read(path).name == "ci"


@needs_root
def test_a_secret_key_of_another_user_is_refused(path, ci):
    os.chown(path, OTHER_UID, -1)
    assert str(OTHER_UID) in refused("owner", SigningKey.read, path).fact


def test_a_secret_key_is_read_through_links_as_kubernetes_mounts_them(tmp_path, path, ci):
    os.symlink(path, tmp_path / "..data")
    os.symlink("..data", tmp_path / "mounted")
    assert SigningKey.read(str(tmp_path / "mounted")).name == "ci"


@pytest.mark.parametrize(
    "content", ["", "ci:AAAA", "gpucache-secret-key:ci:AAAA", "\0" * 100, "-----BEGIN PRIVATE KEY"]
)
def test_what_is_no_secret_key_is_refused(path, content):
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write(content)
    refused("not-secret", SigningKey.read, path)


def test_a_fifo_a_directory_and_nothing_are_no_keys_and_nobody_waits(tmp_path, path):
    os.mkfifo(path, 0o600)
    for one in (path, str(tmp_path), str(tmp_path / "missing"), "a\0b"):
        error = refused("unreadable", SigningKey.read, one)
        assert "cannot be read: " in error.fact


def test_a_file_larger_than_a_key_is_refused(path):
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
        file.truncate(2**40)
    refused("too-long", SigningKey.read, path)


@pytest.mark.parametrize(
    "name", ["", "-ci", "a b", "a:b", "a/b", "a,b", "ä", "a" * 65, "a\n", "a+b"]
)
def test_a_key_may_not_be_called_so(tmp_path, name):
    assert not is_key_name(name)
    refused("name", make_key, name, str(tmp_path / "x.key"))
    assert os.listdir(tmp_path) == []


def test_a_secret_is_in_no_text_and_no_pickle(path, ci):
    secret = secret_of(path)
    assert secret not in repr(ci) + str(ci) + ci.public_text
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(ci)


def test_the_variable_names_the_file(path, ci):
    assert SigningKey.from_environ({}) is None
    assert SigningKey.from_environ({"GPUCACHE_SIGN_KEY": path}).public_text == ci.public_text
    with pytest.raises(ConfigurationError, match="GPUCACHE_SIGN_KEY"):
        SigningKey.from_environ({"GPUCACHE_SIGN_KEY": "  "})
    assert "/none" in str(
        refused("unreadable", SigningKey.from_environ, {"GPUCACHE_SIGN_KEY": "/none"})
    )


# ---- whom to believe


def test_a_list_has_names_and_keys(ci, nightly):
    trusted = TrustedKeys.parse(f" {nightly.public_text} , {ci.public_text},")
    assert trusted.names == ("ci", "nightly")
    assert TrustedKeys.parse(trusted.text) == trusted
    assert repr(trusted) == f"TrustedKeys('{ci.public_text},{nightly.public_text}')"


def test_a_file_has_a_key_a_line_and_comments(tmp_path, ci, nightly):
    path = tmp_path / "trusted"
    path.write_text(f"# who builds\n{ci.public_text} # until June\n\n  {nightly.public_text}\r\n")
    for text in (str(path), f" {path} "):
        assert TrustedKeys.parse(text).names == ("ci", "nightly")


def test_a_file_needs_no_slash_in_its_path(tmp_path, monkeypatch, ci):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trusted").write_text(ci.public_text)
    (tmp_path / "a:b").write_text(ci.public_text)
    assert (
        TrustedKeys.parse("trusted")
        == TrustedKeys.parse("./a:b")
        == TrustedKeys.parse(ci.public_text)
    )


KEY = "PN94B06YZde998QGQ0JbbbAOOfFFh50DQKv3SVevQQc"


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        ("ci:", "key", "the key of ci is no base64url"),
        (f":{KEY}", "syntax", "no NAME:KEY"),
        (f"c i:{KEY}", "syntax", "no NAME:KEY"),
        (f"ci:{KEY},x", "syntax", "'x' is no NAME:KEY"),
        (f"\x1b[2J:{KEY}", "syntax", "'\\x1b[2J"),
        (f"ci:{KEY}=", "key", "without padding"),
        (f"ci:{KEY[:-1]}", "key", "of 32 bytes"),
        (f"ci:{KEY}A", "key", "of 32 bytes"),
        (f"ci:{KEY[:-1]}d", "key", "no base64url"),  # bits that are not used
        (f"ci:+{KEY[1:]}", "key", "no base64url"),
        (f"ci:{KEY}ä", "key", "no base64url"),
        (",:,", "syntax", "no NAME:KEY"),
        ("# :", "no-keys", "names no key"),
        (f"ci:{KEY},ci:{KEY}", "repeated-name", "ci is there twice"),
        (f"a:{KEY},b:{KEY}", "repeated-key", "a and b are one key"),
        (f"gpucache-secret-key:ci:{KEY}", "secret", "has a secret key"),
        (f"ci:{'A' * 43}", "weak-key", "anybody could sign"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(text, code, fact):
    error = refused(code, TrustedKeys.parse, text, named="?trust=")
    assert fact in error.fact
    assert str(error).startswith("?trust=: ")
    assert str(error).isprintable()


def test_one_name_with_two_keys_is_refused(ci, tmp_path):
    other = make_key("ci", str(tmp_path / "other.key"))
    error = refused("repeated-name", TrustedKeys.parse, f"{ci.public_text},{other.public_text}")
    assert "rotation" in error.hint


def test_a_secret_in_a_list_is_not_shown(path, ci):
    with open(path) as file:
        line = file.read()
    for text in (line, f"x:{KEY},{line}"):
        error = refused("secret", TrustedKeys.parse, text)
        assert secret_of(path) not in str(error) + repr(error.args)


def test_a_secret_key_file_is_no_list(path, ci):
    error = refused("secret", TrustedKeys.parse, path)
    assert secret_of(path) not in str(error)


def test_a_file_that_everybody_can_write_is_refused(tmp_path, ci):
    path = tmp_path / "trusted"
    path.write_text(ci.public_text)
    path.chmod(0o646)
    error = refused("writable", TrustedKeys.parse, str(path))
    assert str(path) in error.hint


@needs_root
def test_a_file_of_another_user_is_refused_unless_that_one_is_trusted(tmp_path, ci):
    path = tmp_path / "trusted"
    path.write_text(ci.public_text)
    os.chown(path, OTHER_UID, -1)
    refused("owner", TrustedKeys.parse, str(path))
    trust = Trust(frozenset([OTHER_UID]))
    assert TrustedKeys.parse(str(path), trust=trust).names == ("ci",)
    environ = {"GPUCACHE_TRUST_KEYS": str(path), "GPUCACHE_TRUST_UIDS": str(OTHER_UID)}
    assert TrustedKeys.from_environ(environ).names == ("ci",)


def test_an_empty_file_and_a_huge_one_are_refused(tmp_path):
    path = tmp_path / "trusted"
    path.write_text("# nobody\n")
    refused("no-keys", TrustedKeys.parse, str(path))
    os.truncate(path, 2**40)
    refused("too-long", TrustedKeys.parse, str(path))


def test_no_variable_is_nobody_and_an_empty_one_is_none(ci):
    assert TrustedKeys.from_environ({}) is None
    assert TrustedKeys.from_environ({"GPUCACHE_TRUST_KEYS": ""}) is None
    assert TrustedKeys.from_environ({"GPUCACHE_TRUST_KEYS": ci.public_text}).names == ("ci",)


@given(st.text())
def test_any_text_is_a_list_or_refused(text):
    try:
        TrustedKeys.parse(text)
    except BadKey as error:
        assert error.problem.isprintable()  # noqa: PT017


@pytest.mark.parametrize("weak", sorted(WEAK_POINTS), ids=bytes.hex)
def test_with_a_point_of_small_order_for_a_key_anybody_can_sign(weak):
    """A few guesses, and OpenSSL takes the signature: so none is believed, whatever its sign."""
    public = Ed25519PublicKey.from_public_bytes(weak)

    def is_taken(message, point):
        try:
            public.verify(point + bytes(32), message)
        except Exception:
            return False
        return True

    guesses = [(b"%d" % number, point) for number in range(64) for point in WEAK_POINTS]
    assert any(is_taken(*guess) for guess in guesses)
    for last in (weak[31], weak[31] | 0x80):
        text = signature.to_text(weak[:31] + bytes([last]))
        refused("weak-key", TrustedKeys.parse, f"ci:{text}")


# ---- what is believed


def code_of(trusted, message, signatures) -> str:
    with pytest.raises(BadPack) as error:
        trusted.judge(message, signatures)
    return error.value.code


def test_who_has_signed_is_told_of_several(ci, nightly):
    """So that keys are rotated: both sign, or both are believed, for a while."""
    both = [ci.sign(MESSAGE), nightly.sign(MESSAGE)]
    for text in (ci.public_text, nightly.public_text):
        assert TrustedKeys.parse(text).judge(MESSAGE, both) == text.partition(":")[0]
    believed = TrustedKeys.parse(f"{ci.public_text},{nightly.public_text}")
    for one in both:
        assert believed.judge(MESSAGE, [one]) == one.name


def test_a_stranger_a_wrong_message_and_nobody_are_not_believed(ci, nightly):
    trusted = TrustedKeys.parse(ci.public_text)
    assert code_of(trusted, MESSAGE, []) == "unsigned"
    assert code_of(trusted, MESSAGE, [nightly.sign(MESSAGE)]) == "unknown-signer"
    assert code_of(trusted, MESSAGE + b"!", [ci.sign(MESSAGE)]) == "bad-signature"
    assert code_of(trusted, MESSAGE, [nightly.sign(MESSAGE)._replace(name="ci")]) == "bad-signature"


def test_a_bad_signature_beside_a_good_one_takes_nothing_from_it(ci, nightly):
    trusted = TrustedKeys.parse(f"{ci.public_text},{nightly.public_text}")
    bad = Signature("ci", bytes(64))
    assert trusted.judge(MESSAGE, [bad, nightly.sign(MESSAGE)]) == "nightly"


KEY_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
SIGNATURES = st.lists(
    st.builds(
        Signature,
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        st.binary(min_size=64, max_size=64),
    ),
    min_size=1,
    max_size=16,
    unique_by=lambda one: one.name,
)


@given(SIGNATURES)
def test_signatures_are_read_as_they_were_written(signatures):
    assert parsed_signatures(encoded_signatures(signatures)) == tuple(signatures)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_signatures(data):
    with pytest.raises(BadPack) as error:
        parsed_signatures(data)
    assert error.value.code == "signatures"


# ---- the extra


BLOCKED = """
import sys
sys.modules[{module!r}] = None
from gpucache.archive import compression, signature, trusted_keys
from gpucache.errors import NotInstalledError
import io
trusted = trusted_keys.TrustedKeys.parse("ci:{key}")
try:
    {call}
except NotInstalledError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("cryptography", "signature.make_key('ci', '/proc/none')"),
        ("cryptography", "trusted.judge(b'', [signature.Signature('ci', bytes(64))])"),
        ("zstandard", "compression.Decompressed(io.BytesIO())"),
        ("zstandard", "compression.compressed(io.BytesIO()).__enter__()"),
    ],
)
def test_without_the_extra_the_error_names_the_way_out(module, call):
    """And a list of keys can be read all the same: `doctor` looks at it."""
    code = BLOCKED.format(module=module, call=call, key=KEY)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout == f"{NotInstalledError(module)}\n"
    assert "pip install opendal redis zstandard cryptography" in child.stdout
    assert child.stderr == ""


def test_nothing_of_the_extra_is_imported_before_its_use():
    rooms = "gpucache.archive.read, gpucache.archive.write, gpucache.archive.trusted_keys"
    code = f"import {rooms}, sys; print({{'zstandard', 'cryptography'}} & {{*sys.modules}})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout == "set()\n"


def test_a_key_file_that_cannot_be_read_is_told_with_what_names_it(tmp_path):
    """The path alone says nothing to whom has only set a variable, and forgot a colon or wrote two paths."""
    for read, variable in (
        (SigningKey.read, "GPUCACHE_SIGN_KEY"),
        (TrustedKeys.parse, "GPUCACHE_TRUST_KEYS"),
    ):
        with pytest.raises(BadKey) as caught:
            read(f"{tmp_path}/a,{tmp_path}/b")
        assert variable in str(caught.value)


@pytest.mark.parametrize("command", ["pack -o n.tar.zst", "config --json", "doctor"])
@pytest.mark.parametrize(
    ("variable", "part"),
    [
        ("GPUCACHE_SIGN_KEY", 0),
        ("GPUCACHE_SIGN_KEY", 1),
        ("GPUCACHE_SIGN_KEY", 2),
        ("GPUCACHE_TRUST_KEYS", 0),
    ],
)
def test_a_secret_key_in_the_place_of_a_path_is_never_shown(
    command, variable, part, gpucache, tmp_path, monkeypatch
):
    """CI systems keep secrets as texts of variables."""
    monkeypatch.chdir(tmp_path)
    make_key("ci", "ci.key")
    (tmp_path / "root").mkdir(mode=0o700)
    whole = (tmp_path / "ci.key").read_text().strip()
    secret = whole.rpartition(":")[2]
    said = ":".join(whole.split(":")[part:])
    environ = {**os.environ, variable: said, "GPUCACHE_DIR": str(tmp_path / "root")}
    environ["GPUCACHE_REMOTE"] = f"file://{tmp_path}/root?mode=write"
    done = gpucache(*command.split(), env=environ)
    assert secret not in done.stdout + done.stderr
    if command.startswith("pack") and variable == "GPUCACHE_SIGN_KEY":
        assert done.returncode == 1
        assert "is not the path of a file: write the key to one" in done.stderr
