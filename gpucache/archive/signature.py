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
from gpucache.archive.key_files import read_secret, write_secret
from gpucache.environment import SECRET_KEY, SIGN_KEY
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
KEY_BYTES = 32
_SIGNATURE_BYTES = 64
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


def from_text(text: str, length: int) -> bytes | None:
    """The bytes of a text without padding; None for what `to_text` would not write of so many bytes."""
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
    value = from_text(text, _SIGNATURE_BYTES) if type(text) is str else None
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
        secret = from_text(secret_text, KEY_BYTES)
        if beginning != SECRET_KEY or not is_key_name(name) or secret is None:
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
    line = f"{SECRET_KEY}:{name}:{to_text(key.private_bytes_raw())}\n".encode()
    try:
        write_secret(path, line)
    except FileExistsError:
        hint = "choose another name: what is signed with a lost key is believed no more"
        raise BadKey("exists", path, "it is there already", hint) from None
    except OSError as error:
        fact = f"it cannot be written: {error.strerror}"
        raise BadKey("unwritable", path, fact, "choose another path") from None
    return SigningKey(name, key)


# ---- verifying


def is_good(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature of a message is that of the secret key to these 32 bytes of a public one."""
    public: Ed25519PublicKey = _ed25519().Ed25519PublicKey.from_public_bytes(key)
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def anyone(message: bytes, signatures: Sequence[Signature]) -> None:
    """Judge a pack whose bytes are believed for another reason, such as that its file is the user's own."""
