"""`TrustedKeys`: the public keys of those who are believed, as `GPUCACHE_TRUST_KEYS` and remotes name them."""

from __future__ import annotations

import re

from gpucache.archive.errors import BadKey, BadPack, quoted
from gpucache.archive.key_files import read_trusted
from gpucache.archive.signature import KEY_BYTES, from_text, is_good, is_key_name, to_text
from gpucache.disk.vetting import Trust
from gpucache.environment import SECRET_KEY, TRUST_KEYS, is_key_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpucache.archive.signature import Signature


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
            if is_good(self._keys[one.name], one.value, message):
                return one.name
        names = ", ".join(one.name for one in known)
        raise BadPack("bad-signature", f"its signature is not that of {names}")


def _add(keys: dict[str, bytes], said: str, source: str) -> None:
    """Add one ``NAME:KEY`` to the keys."""
    if said.startswith(SECRET_KEY):
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
    key = from_text(text, KEY_BYTES)
    if key is None:
        fact = f"the key of {name} is no base64url of {KEY_BYTES} bytes without padding"
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
