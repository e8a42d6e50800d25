"""Who vouches for a pack: signatures by named ed25519 keys. The only module that imports cryptography.

Readers have public keys alone, as ``NAME:base64url`` without padding, which a URL's query leaves as it is; whoever has
the secret one of a name can write what each of them executes.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NamedTuple

from gpucache.archive.errors import BadKey, BadPack, quoted
from gpucache.archive.key_files import read_secret, read_trusted, write_secret
from gpucache.disk.vetting import Trust
from gpucache.environment import SIGN_KEY, TRUST_KEYS, is_key_file
from gpucache.errors import NotInstalledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MOST_SIGNATURES = 16
MOST_SIGNATURES_BYTES = 2**16
"""A longer member of signatures is not read."""
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_SECRET = "gpucache-secret-key"
"""How the one line of a file with a secret key begins, so that a secret is never taken for a public key and shown."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_WORDS = "letters, digits and ._- after a letter or digit, 64 at most"


def is_key_name(text: str) -> bool:
    """Whether a key may be called so: letters, digits, ``._-``, the first one a letter or digit, 64 at most."""
    return _NAME.fullmatch(text) is not None


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise NotInstalledError("cryptography") from None
    found: ModuleType = ed25519
    return found


def to_text(data: bytes) -> str:
    """Bytes as base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _from_text(text: str, length: int) -> bytes | None:
    """The bytes of a text without padding; None for what `_to_text` would not write of so many bytes."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    return data if len(data) == length and to_text(data) == text else None


# ---- signatures


class Signature(NamedTuple):
    """What one key says of a message."""

    name: str
    """The name of the key."""
    value: bytes
    """64 bytes."""


def encoded_signatures(signatures: Sequence[Signature]) -> bytes:
    """The content of the member ``gpucache-pack.sig``."""
    said = [{"name": one.name, "signature": to_text(one.value)} for one in signatures]
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def parsed_signatures(data: bytes) -> tuple[Signature, ...]:
    """Read the member ``gpucache-pack.sig``, which anybody may have written.

    Raises:
        BadPack: it is anything but a few signatures, each of another name.
    """
    if len(data) > MOST_SIGNATURES_BYTES:
        raise _bad_signatures(f"are more than {MOST_SIGNATURES_BYTES >> 10} KiB")
    try:
        said = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        raise _bad_signatures("are no JSON") from None
    if type(said) is not list or not 1 <= len(said) <= MOST_SIGNATURES:
        raise _bad_signatures(f"are no list of 1 to {MOST_SIGNATURES}")
    signatures = tuple(map(_signature, said))
    if len({one.name for one in signatures}) < len(signatures):
        raise _bad_signatures("have one name twice")
    if encoded_signatures(signatures) != data:
        raise _bad_signatures("are written in another way than gpucache's")
    return signatures


def _signature(said: object) -> Signature:
    if type(said) is not dict or said.keys() != {"name", "signature"}:
        raise _bad_signatures("have one that is no name and signature")
    name, text = said["name"], said["signature"]
    if type(name) is not str:
        raise _bad_signatures("have one whose name is no text")
    if not is_key_name(name):
        raise _bad_signatures(f"have one of {quoted(name)}, which is no name of a key")
    value = _from_text(text, _SIGNATURE_BYTES) if type(text) is str else None
    if value is None:
        raise _bad_signatures(
            f"have one of {name} that is no base64url of {_SIGNATURE_BYTES} bytes"
        )
    return Signature(name, value)


def _bad_signatures(fact: str) -> BadPack:
    return BadPack("signatures", f"its signatures {fact}")


# ---- the secret key


class SigningKey:
    """A secret key. Neither its text nor an error nor a pickle has the secret."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = name
        self._key = key

    def __repr__(self) -> str:
        return f"SigningKey({self.public_text!r})"

    def __reduce__(self) -> str:
        raise TypeError("a secret key is not pickled")

    @classmethod
    def read(cls, path: str) -> SigningKey:
        """Read the file that `make_key` wrote.

        Raises:
            BadKey: it is no such file; or others than its owner can read it, or another user than this one and root
                owns it. A group may read what root owns, as Kubernetes mounts a secret with ``fsGroup``.
            NotInstalledError: cryptography is missing.
        """
        text = read_secret(path)
        beginning, _, rest = text.strip().partition(":")
        name, _, secret_text = rest.partition(":")
        secret = _from_text(secret_text, _KEY_BYTES)
        if beginning != _SECRET or not is_key_name(name) or secret is None:
            fact = "it is no secret key of gpucache's"
            raise BadKey(
                "not-secret", path, fact, "name the file that `gpucache keygen` has written"
            )
        return cls(name, _ed25519().Ed25519PrivateKey.from_private_bytes(secret))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> SigningKey | None:
        """The key that `GPUCACHE_SIGN_KEY` names; None where the variable is unset.

        Raises:
            BadKey, NotInstalledError: as `read`.
            ConfigurationError: the variable makes no sense.
        """
        path = SIGN_KEY.read(environ)
        return None if path is None else cls.read(path)

    @property
    def public_text(self) -> str:
        """What readers trust: ``NAME:base64url``, without padding."""
        return f"{self.name}:{to_text(self._key.public_key().public_bytes_raw())}"

    def sign(self, message: bytes) -> Signature:
        """Sign a message."""
        return Signature(self.name, self._key.sign(message))


def make_key(name: str, path: str) -> SigningKey:
    """Make a new secret key, and write it to a new file that its owner alone can read; never over another file.

    Raises:
        BadKey: the name is none, something is there already, or the file cannot be written.
        NotInstalledError: cryptography is missing.
    """
    if not is_key_name(name):
        raise BadKey("name", quoted(name), "it is no name of a key", f"choose {_NAME_WORDS}")
    key = _ed25519().Ed25519PrivateKey.generate()
    line = f"{_SECRET}:{name}:{to_text(key.private_bytes_raw())}\n".encode()
    try:
        write_secret(path, line)
    except FileExistsError:
        hint = "choose another name: what is signed with a lost key is believed no more"
        raise BadKey("exists", path, "it is there already", hint) from None
    except OSError as error:
        fact = f"it cannot be written: {error.strerror}"
        raise BadKey("unwritable", path, fact, "choose another path") from None
    return SigningKey(name, key)


# ---- the public keys that are believed


class TrustedKeys:
    """The public keys of those who are believed, by their names; each name has one key, and each key one name."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrustedKeys) and self._keys == other._keys

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"TrustedKeys({self.text!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """Whose keys they are, sorted."""
        return tuple(sorted(self._keys))

    @property
    def text(self) -> str:
        """The list as `parse` reads it, sorted by name."""
        return ",".join(f"{name}:{to_text(self._keys[name])}" for name in self.names)

    @classmethod
    def parse(cls, text: str, named: str = TRUST_KEYS.name, trust: Trust = Trust()) -> TrustedKeys:  # noqa: B008
        """Read a list ``NAME:base64url,…``, or the path of a file that has a key a line, and comments after ``#``.

        A text with a ``/`` or without a ``:`` is a path. ``named`` is where the text comes from, for errors. The file
        may belong to this user, to root, and to whom ``trust`` covers, and nobody else may write it.

        Raises:
            BadKey: a line is no key; one name has two keys, or one key two names; there is none; or another user could
                write the file.
        """
        source = named
        if is_key_file(text):
            source = text.strip()
            text = read_trusted(source, trust, named)
        keys: dict[str, bytes] = {}
        for line in re.split(r"[,\n]", text):
            said = line.partition("#")[0].strip()
            if said:
                _add(keys, said, source)
        if not keys:
            raise BadKey(
                "no-keys", source, "it names no key", f"name one as NAME:KEY, or unset {named}"
            )
        return cls(keys)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> TrustedKeys | None:
        """The keys that `GPUCACHE_TRUST_KEYS` names; None where the variable is unset.

        Raises:
            BadKey: as `parse`.
            ConfigurationError: a variable makes no sense.
        """
        text = TRUST_KEYS.read(environ)
        return None if text is None else cls.parse(text, trust=Trust.parse(environ))

    def judge(self, message: bytes, signatures: Sequence[Signature]) -> str:
        """Whose signature of the message is good; where several are, the first one's.

        Raises:
            BadPack: there is none (``unsigned``), none of a trusted name (``unknown-signer``), or none of those that
                have a trusted name is good (``bad-signature``).
            NotInstalledError: cryptography is missing.
        """
        if not signatures:
            raise BadPack("unsigned", "nobody has signed it")
        known = [one for one in signatures if one.name in self._keys]
        if not known:
            signers = ", ".join(one.name for one in signatures)
            trusted = ", ".join(self.names)
            raise BadPack(
                "unknown-signer", f"it is signed by {signers}, and only {trusted} is believed"
            )
        for one in known:
            if _is_good(self._keys[one.name], one.value, message):
                return one.name
        names = ", ".join(one.name for one in known)
        raise BadPack("bad-signature", f"its signature is not that of {names}")


WEAK_POINTS = frozenset(
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""The points of small order, without their signs: 43 times ``A`` is one. With such a public key a signature is found
by a few guesses, and OpenSSL takes it (libsodium 1.0.18, `ge25519_has_small_order`)."""


def _is_weak(key: bytes) -> bool:
    return key[:31] + bytes([key[31] & 0x7F]) in WEAK_POINTS


def _is_good(key: bytes, signature: bytes, message: bytes) -> bool:
    public: Ed25519PublicKey = _ed25519().Ed25519PublicKey.from_public_bytes(key)
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def anyone(message: bytes, signatures: Sequence[Signature]) -> None:
    """Judge a pack whose bytes are believed for another reason, such as that its file is the user's own."""


def _add(keys: dict[str, bytes], said: str, source: str) -> None:
    """Add one ``NAME:KEY`` to the keys."""
    if said.startswith(_SECRET):
        hint = "give readers the public key, as keygen printed it; make a new key if others read this one"
        raise BadKey("secret", source, "it has a secret key, which no reader may have", hint)
    name, colon, text = said.partition(":")
    if not colon or not is_key_name(name):
        shown = quoted(said[:24])
        raise BadKey(
            "syntax",
            source,
            f"{shown} is no NAME:KEY",
            "write each key as `gpucache keygen` prints it",
        )
    key = _from_text(text, _KEY_BYTES)
    if key is None:
        fact = f"the key of {name} is no base64url of {_KEY_BYTES} bytes without padding"
        raise BadKey("key", source, fact, "write each key as `gpucache keygen` prints it")
    if _is_weak(key):
        hint = "write the key that `gpucache keygen` printed"
        raise BadKey("weak-key", source, f"with the key of {name} anybody could sign", hint)
    if name in keys:
        hint = "leave one out; for a rotation give the new key another name"
        raise BadKey("repeated-name", source, f"{name} is there twice", hint)
    for other, there in keys.items():
        if there == key:
            raise BadKey("repeated-key", source, f"{other} and {name} are one key", "leave one out")
    keys[name] = key
