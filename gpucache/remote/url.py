"""`RemoteUrl`: where a remote is, how it is used and whom it is trusted by, as one URL says it.

```
s3://BUCKET/PREFIX?endpoint=URL&region=NAME       gs://BUCKET/PREFIX?endpoint=URL
az://CONTAINER/PREFIX?account=NAME&endpoint=URL   hf://[datasets|spaces/]OWNER/REPOSITORY[@REVISION]/PREFIX
redis://USER@HOST:PORT/DATABASE?prefix=PREFIX     webdav://USER@HOST/PATH   (rediss, webdav+https: with TLS)
file:///SHARED/DIRECTORY
```

A bucket or container that everybody may read has ``anonymous=1``. Each may have ``mode=read`` (the default) or
``mode=write``, and ``trust=NAME:KEY,…`` or, for ``file``, ``trust=owner``. No URL has a secret in it: what could be one
is refused, and is not shown either.
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from gpucache.environment import REMOTE
from gpucache.errors import GpuCacheError
from gpucache.escapes import printable, without_secrets
from gpucache.remote.errors import RemoteUrlError
from gpucache.values import Value, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

Mode = Literal["read", "write"]
Scheme = Literal["s3", "gs", "az", "hf", "redis", "rediss", "webdav", "webdav+https", "file"]
Library = Literal["opendal", "redis"]

_OWN_OPTIONS: dict[Scheme, frozenset[str]] = {
    "s3": frozenset({"endpoint", "region", "anonymous"}),
    "gs": frozenset({"endpoint", "anonymous"}),
    "az": frozenset({"endpoint", "account", "anonymous"}),
    "hf": frozenset({"endpoint"}),
    "redis": frozenset({"prefix"}),
    "rediss": frozenset({"prefix"}),
    "webdav": frozenset(),
    "webdav+https": frozenset(),
    "file": frozenset(),
}
_FOR_ALL = frozenset({"mode", "trust"})
_ALIASES = {
    "webdav+http": "webdav",
    "webdavs": "webdav+https",
    "dav": "webdav",
    "davs": "webdav+https",
    "gcs": "gs",
    "azblob": "az",
}
"""Other names of schemes, as other programs have them."""
CREDENTIALS: dict[Scheme, str] = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the path of the credentials",
    "az": "set AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN",
    "hf": "set HF_TOKEN",
    "redis": "set REDISCLI_AUTH to the password",
    "rediss": "set REDISCLI_AUTH to the password",
    "webdav": "set WEBDAV_PASSWORD, or WEBDAV_TOKEN",
    "webdav+https": "set WEBDAV_PASSWORD, or WEBDAV_TOKEN",
    "file": "a directory needs none",
}
"""Where each service's credentials come from, instead of the URL."""
_WITH_USERS = ("redis", "rediss", "webdav", "webdav+https")
_MOST_LETTERS = 4096


class TrustSpec(Value):
    """Whom one remote is trusted by, as its URL says it: its files' owners, or the holders of keys."""

    owner: bool
    """Whether unsigned entries are taken from files that only trusted users could write."""
    keys: str
    """The trusted keys as text (``NAME:KEY,NAME:KEY``); empty with ``owner``."""


class RemoteUrl(Value):
    """A remote's URL, read: none of its parts is a secret, and its path leads nowhere but down."""

    text: str
    """As given: equal texts are one remote."""
    scheme: Scheme
    host: str
    """The bucket or container, or host and port; of ``hf`` the first part; of ``file`` nothing."""
    user: str | None
    path: str
    """What follows the host, without a slash at either end; of ``file`` an absolute path."""
    options: tuple[tuple[str, str], ...]
    """What the service is told beside: names and values."""
    mode: Mode
    trust: TrustSpec | None
    """None where the keys are trusted that `GPUCACHE_TRUST_KEYS` has."""

    @classmethod
    def parse(cls, text: str) -> RemoteUrl:
        """Read a URL.

        Raises:
            RemoteUrlError: the URL makes no sense, or has a password or another credential in it.
        """
        parts = _split(text)
        scheme = _scheme(text, parts)
        given = _options(text, parts, scheme)
        _refuse_password(text, parts, scheme)
        own = [pair for pair in given.items() if pair[0] not in _FOR_ALL]
        return cls(
            text=text,
            scheme=scheme,
            host=_host(text, parts, scheme),
            user=unquote(parts.username) if parts.username else None,
            path=_path(text, parts, scheme),
            options=tuple(own),
            mode=_mode(text, given.get("mode", "read"), scheme),
            trust=_trust(text, given.get("trust"), scheme),
        )

    @classmethod
    def configured(cls, environ: Mapping[str, str]) -> RemoteUrl | None:
        """The remote that `GPUCACHE_REMOTE` names; None where that is unset.

        Raises:
            ConfigurationError, RemoteUrlError: the variable's value makes no sense.
        """
        text = REMOTE.read(environ)
        return None if text is None else cls.parse(text)

    @classmethod
    def for_launch(cls, environ: Mapping[str, str]) -> RemoteUrl | None:
        """As `configured`, for a kernel launch: a URL that makes no sense is none, and is told once. Never raises."""
        try:
            return cls.configured(environ)
        except GpuCacheError as error:
            from gpucache.log import warn_once

            warn_once(f"{REMOTE}", error, "no remote is asked")
            return None

    def for_writing(self) -> RemoteUrl:
        """The same remote as one that is written, for whoever was told to write, whatever the URL's mode.

        Raises:
            RemoteUrlError: such a remote cannot be written.
        """
        return replace(self, mode=_mode(self.text, "write", self.scheme))

    @property
    def shown(self) -> str:
        """The URL as may be shown to anybody: without mode and trust, which are of no interest where it is shown."""
        user = f"{self.user}@" if self.user else ""
        slash = "" if self.scheme == "file" or not self.path else "/"
        options = "&".join(f"{name}={value}" for name, value in self.options)
        question = "?" if options else ""
        return printable(f"{self.scheme}://{user}{self.host}{slash}{self.path}{question}{options}")

    @property
    def is_by_owner(self) -> bool:
        """Whether what lies there is believed by the owners of its files, without a signature (``trust=owner``)."""
        return self.trust is not None and self.trust.owner

    @property
    def library(self) -> Library | None:
        """The library by which such a remote is asked, which may be missing; None where none is needed."""
        if self.scheme == "file":
            return None
        return "redis" if self.scheme in ("redis", "rediss") else "opendal"

    def option(self, name: str) -> str | None:
        """The value of one option of the service; None where the URL does not have that."""
        return dict(self.options).get(name)


def _refused(text: str, fact: str, hint: str) -> RemoteUrlError:
    return RemoteUrlError(without_secrets(text), fact, hint)


def _split(text: str) -> SplitResult:
    if len(text) > _MOST_LETTERS or not text.isprintable() or " " in text:
        raise _refused(text, "is too long, or has blanks or controls", "write it with %-escapes")
    try:
        parts = urlsplit(text)
        assert parts.port is None or parts.port > 0
    except (ValueError, AssertionError):
        raise _refused(text, "is no URL", _way_out_of_none(text)) from None
    if "#" in text:
        raise _refused(text, "has a #", "write %23 for it")
    return parts


def _way_out_of_none(text: str) -> str:
    """The way out of a text that is no URL: often a password is in it, which has a slash, or no host after it."""
    scheme = text.partition("://")[0]
    for known, variables in CREDENTIALS.items():
        if known == _ALIASES.get(scheme, scheme) and "***" in without_secrets(text):
            return f"if it has a password, leave that out, and {variables}"
    return f"write a URL such as {_EXAMPLE}"


_EXAMPLE = "s3://bucket/prefix or file:///shared/directory"


def _scheme(text: str, parts: SplitResult) -> Scheme:
    asked = _ALIASES.get(parts.scheme, parts.scheme)
    for scheme in _OWN_OPTIONS:
        if scheme == asked:
            return scheme
    known = ", ".join(_OWN_OPTIONS)
    hint = f"choose one of {known}"
    if parts.scheme in ("http", "https"):
        end = "+https" if parts.scheme == "https" else ""
        hint = f"of a WebDAV server write webdav{end}://, of S3 s3://bucket?endpoint={parts.scheme}://…"
    if not parts.scheme and parts.path.startswith("/"):
        hint = "of a directory write file:// and its absolute path"
    fact = f"{parts.scheme} is no kind of remote" if parts.scheme else "has no scheme"
    raise _refused(text, fact, hint)


def _options(text: str, parts: SplitResult, scheme: Scheme) -> dict[str, str]:
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        raise _refused(text, "has an option twice", "say each once")
    known = _OWN_OPTIONS[scheme] | _FOR_ALL
    for name, value in pairs:
        if name not in known:
            names = ", ".join(sorted(known))
            hint = f"the options are {names}; of credentials, {CREDENTIALS[scheme]}"
            raise _refused(text, f"has an unknown option {printable(name)[:40]!r}", hint)
        if not value or not value.isprintable():
            fact = f"{name} has no value, or controls in it"
            raise _refused(text, fact, f"say {name}=VALUE, or leave it out")
        if name == "endpoint":
            _check_endpoint(text, value)
        if name == "anonymous" and value != "1":
            raise _refused(text, "anonymous is not 1", "say anonymous=1, or leave it out")
    return given


def _check_endpoint(text: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        is_plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        is_plain = is_plain and not parts.query and not parts.fragment
    except ValueError:
        is_plain = False
    if not is_plain:
        raise _refused(text, "its endpoint is no URL", "say endpoint=https://HOST:PORT")
    if "@" in value:
        raise _refused(text, "its endpoint has a user in it", "say endpoint=https://HOST:PORT")


def _refuse_password(text: str, parts: SplitResult, scheme: Scheme) -> None:
    if parts.password is not None or ":" in unquote(parts.username or ""):
        hint = f"leave it out, and {CREDENTIALS[scheme]}"
        raise _refused(
            text, "has a password in it, which every process of the node could read", hint
        )
    rest = text.partition("//")[2][len(parts.netloc) :]
    if scheme in _WITH_USERS and "@" in rest:  # the end of a password may be taken for a path
        hint = f"write %40 for it; of a password, {CREDENTIALS[scheme]}"
        raise _refused(text, "has an @ after its host", hint)
    if parts.username and scheme not in _WITH_USERS:
        hint = f"leave it out; of credentials, {CREDENTIALS[scheme]}"
        raise _refused(text, "has a user in it", hint)


def _host(text: str, parts: SplitResult, scheme: Scheme) -> str:
    host = parts.netloc.rpartition("@")[2]
    if scheme == "file":
        if host not in ("", "localhost"):
            raise _refused(text, "names a host", "write file:///, and an absolute path")
        return ""
    if not host or not parts.hostname:
        raise _refused(text, "has no host", f"write a URL such as {_EXAMPLE}")
    if scheme in ("s3", "gs", "az", "hf") and ":" in host:
        raise _refused(text, "has a port", "name the bucket here, and the server by endpoint=")
    return host


def _path(text: str, parts: SplitResult, scheme: Scheme) -> str:
    try:
        path = unquote(parts.path, errors="strict")
    except UnicodeDecodeError:
        raise _refused(text, "its path is no UTF-8", "write the path in UTF-8") from None
    steps = [step for step in path.split("/") if step]
    if ".." in steps or "." in steps or not path.isprintable():
        raise _refused(text, "its path has . or .. or controls", "write the path that is meant")
    inner = "/".join(steps)
    if scheme == "file":
        if not path.startswith("/") or not inner:
            raise _refused(text, "names no directory", "write file:///, and an absolute path")
        return f"/{inner}"
    return inner


def _mode(text: str, mode: str, scheme: Scheme) -> Mode:
    if mode == "read":
        return "read"
    if mode != "write":
        raise _refused(text, f"mode is {printable(mode)[:40]!r}", "say mode=read or mode=write")
    if scheme == "hf":
        raise _refused(
            text, "cannot be written by gpucache", "say mode=read; `hf upload` puts packs there"
        )
    return "write"


def _trust(text: str, trust: str | None, scheme: Scheme) -> TrustSpec | None:
    if trust is None:
        return None
    if trust != "owner":
        return TrustSpec(owner=False, keys=trust)
    if scheme != "file":
        raise _refused(
            text,
            "trust=owner is for files, which have owners",
            "name whom to believe: trust=NAME:KEY, or GPUCACHE_TRUST_KEYS",
        )
    return TrustSpec(owner=True, keys="")
