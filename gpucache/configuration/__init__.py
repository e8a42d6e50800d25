"""Settings from files: the system's, the user's and a root's, over the defaults and under the environment."""

from gpucache.configuration.merged import (
    InForce,
    Merged,
    changeable,
    environ,
    for_all,
    for_child,
    in_force,
)

__all__ = ["InForce", "Merged", "changeable", "environ", "for_all", "for_child", "in_force"]
