"""What `doctor` asks about the root as a whole: whether it is there, and whether it is a cache at all."""

from __future__ import annotations

from collections.abc import Iterator

from gpucache.diagnosis.case import provision_fix
from gpucache.diagnosis.codes import tells
from gpucache.disk.root import check_cache
from gpucache.errors import NoRootError, ProvisionError
from gpucache.findings import Finding, Level


@tells(
    {
        "root-missing": "nothing was provisioned: the root is not there",
        "root-no-cache": "the root is a directory of another kind: nothing in it is a cache's",
    }
)
def root(path: str, named: str | None) -> Iterator[Finding]:
    """Find that a root is not there, an error where an option or a variable (``named``) names it; or is no cache."""
    try:
        check_cache(path, named)
    except ProvisionError:
        return  # `trust_checks.unsafe` tells of what this user may not look into
    except NoRootError as error:
        level: Level = "error" if named else "warning"
        if error.reason in ("missing", "dangling"):
            fact = (
                "it is not there"
                if error.reason == "missing"
                else "it is a link that leads nowhere"
            )
            yield Finding("root-missing", level, path, fact, provision_fix(path))
        elif error.reason == "no-cache":
            fact = "it is no cache: nothing in it is gpucache's, Triton's or TorchInductor's"
            yield Finding("root-no-cache", "error", path, fact, f"correct {named or 'the root'}")
