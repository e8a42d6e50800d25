"""What the library of each service is told: its address from the URL, its credentials from the environment.

The variables are those of each service's own tools. Where none is set, opendal looks further itself (``~/.aws``, the
role of a machine or of a Kubernetes account), but into the environment of this process only.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from gpucache.disk.door import read_limited
from gpucache.remote.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpucache.remote.url import Library, RemoteUrl, Scheme

_SECRET_BYTES = 16 * 1024
_CONFIG_BYTES = 2**20


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    """The value of the first of these variables that is set to something, without blanks and ends of lines around it.

    A secret that comes from a file often has one at its end, and no header of HTTP may.
    """
    for name in names:
        if value := environ.get(name, "").strip():
            return value
    return None


def _anonymous(url: RemoteUrl) -> str | None:
    """Whether requests are not signed, as of a bucket that everybody may read; in opendal's words."""
    return "true" if url.option("anonymous") else None


def _s3(url: RemoteUrl, environ: Mapping[str, str]) -> dict[str, str | None]:
    # After the AWS CLI: the variable of one service wins over that of all.
    endpoint = _first(environ, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    region = _first(environ, "AWS_REGION", "AWS_DEFAULT_REGION")
    key = _first(environ, "AWS_ACCESS_KEY_ID")
    return {
        "bucket": url.host,
        "endpoint": url.option("endpoint") or endpoint,
        "region": url.option("region") or region or _kept_region(environ) or "us-east-1",
        "access_key_id": key,
        "secret_access_key": key and _first(environ, "AWS_SECRET_ACCESS_KEY"),
        "session_token": key and _first(environ, "AWS_SESSION_TOKEN"),
        "skip_signature": _anonymous(url),
    }


def _kept_region(environ: Mapping[str, str]) -> str | None:
    """The region that the file of the AWS CLI names for the profile; None where there is none.

    opendal takes credentials from there, and no region (0.47.12).
    """
    import configparser

    profile = environ.get("AWS_PROFILE") or "default"
    section = "default" if profile == "default" else f"profile {profile}"
    path = environ.get("AWS_CONFIG_FILE") or os.path.expanduser("~/.aws/config")
    kept = configparser.RawConfigParser()
    with suppress(OSError, UnicodeDecodeError, configparser.Error):
        kept.read_string(read_limited(path, _CONFIG_BYTES).decode())
        return kept.get(section, "region", fallback="").strip() or None
    return None


def _gs(url: RemoteUrl, environ: Mapping[str, str]) -> dict[str, str | None]:
    return {
        "bucket": url.host,
        "endpoint": url.option("endpoint"),
        "credential_path": _first(environ, "GOOGLE_APPLICATION_CREDENTIALS"),
        "skip_signature": _anonymous(url),
    }


def _az(url: RemoteUrl, environ: Mapping[str, str]) -> dict[str, str | None]:
    named = _first(environ, "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
    account = url.option("account") or named
    endpoint = url.option("endpoint")
    if account is None and endpoint is None:
        detail = "no storage account is named: say ?account=NAME, or set AZURE_STORAGE_ACCOUNT"
        raise RemoteError(url.shown, "misconfigured", "reach", detail=detail)
    return {
        "container": url.host,
        "account_name": account,
        "endpoint": endpoint or f"https://{account}.blob.core.windows.net",
        "account_key": _first(environ, "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"),
        "sas_token": _first(environ, "AZURE_STORAGE_SAS_TOKEN"),
        "skip_signature": _anonymous(url),
    }


_REPOSITORIES = {"datasets": "dataset", "spaces": "space", "models": "model"}


def _hf(url: RemoteUrl, environ: Mapping[str, str]) -> dict[str, str | None]:
    """As in huggingface_hub's own URLs: ``hf://datasets/OWNER/NAME@REVISION/PATH``, of a model without the first."""
    steps = [url.host, *url.path.split("/")]
    kind = "model"
    if steps[0] in _REPOSITORIES:
        kind = _REPOSITORIES[steps.pop(0)]
    if len(steps) < 2 or not all(steps[:2]):
        detail = "no repository is named: write hf://OWNER/NAME, or hf://datasets/OWNER/NAME"
        raise RemoteError(url.shown, "misconfigured", "reach", detail=detail)
    name, _, revision = steps[1].partition("@")
    return {
        "repo_type": kind,
        "repo_id": f"{steps[0]}/{name}",
        "revision": unquote(revision) or "main",
        "endpoint": url.option("endpoint") or _first(environ, "HF_ENDPOINT"),
        "token": _first(environ, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") or _kept_hf_token(environ),
        "download_mode": "http",
        "root": "/" + "/".join(steps[2:]),
    }


def _kept_hf_token(environ: Mapping[str, str]) -> str | None:
    """The token that `hf auth login` has kept; None where there is none."""
    home = environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    path = environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")
    with suppress(OSError, UnicodeDecodeError):
        return read_limited(path, _SECRET_BYTES).decode().strip() or None
    return None


def _webdav(url: RemoteUrl, environ: Mapping[str, str]) -> dict[str, str | None]:
    tls = "s" if url.scheme == "webdav+https" else ""
    user = url.user or _first(environ, "WEBDAV_USERNAME")
    return {
        "endpoint": f"http{tls}://{url.host}",
        "username": user,
        "password": _first(environ, "WEBDAV_PASSWORD") if user else None,
        "token": _first(environ, "WEBDAV_TOKEN"),
    }


def _redis(url: RemoteUrl, environ: Mapping[str, str]) -> dict[str, str | None]:
    database = url.path or "0"
    if not re.fullmatch(r"[0-9]{1,5}", database):
        detail = "its path is no number of a database, such as /0; a prefix is ?prefix=NAME"
        raise RemoteError(url.shown, "misconfigured", "reach", detail=detail)
    at = urlsplit(f"//{url.host}")
    password = _first(environ, "REDISCLI_AUTH")  # as redis-cli does
    return {
        "root": None,
        "host": at.hostname,
        "port": str(at.port or 6379),
        "database": database,
        "prefix": url.option("prefix") or "gpucache",
        "username": url.user if password else None,
        "password": password,
    }


_SERVICES: dict[Scheme, tuple[str, Callable[..., dict[str, str | None]]]] = {
    "s3": ("s3", _s3),
    "gs": ("gcs", _gs),
    "az": ("azblob", _az),
    "hf": ("hf", _hf),
    "webdav": ("webdav", _webdav),
    "webdav+https": ("webdav", _webdav),
    "redis": ("redis", _redis),
    "rediss": ("rediss", _redis),
}
"""Of each scheme the service's name as its library has it, and what tells the settings."""


class Service(NamedTuple):
    """A service, as its library is told of it."""

    library: Library
    service: str
    """Its name, as the library has it."""
    settings: dict[str, str]
    """Some of these are secrets."""


def service(url: RemoteUrl, environ: Mapping[str, str]) -> Service:
    """The service that a URL names, which is none of a directory.

    Raises:
        RemoteError: ``misconfigured``: the URL names less than the service needs.
    """
    name, settings_of = _SERVICES[url.scheme]
    settings = {"root": f"/{url.path}", **settings_of(url, environ)}
    told = {key: value for key, value in settings.items() if value}
    return Service(url.library or "opendal", name, told)
