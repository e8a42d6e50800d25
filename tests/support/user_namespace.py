"""Run a command as root of a user namespace: ``python user_namespace.py OUTSIDE COUNT COMMAND…``.

The ids from 0 on inside are those from OUTSIDE on, so many; every other one is shown as 65534, as in a rootless
container (user_namespaces(7)). The command sees the mounts of its caller.
"""

import ctypes
import os
import sys

_NEW_USER = 0x10000000  # CLONE_NEWUSER of sched.h


def main() -> None:
    outside, count, *command = sys.argv[1:]
    made, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        library = ctypes.CDLL(None, use_errno=True)
        assert library.unshare(_NEW_USER) == 0, os.strerror(ctypes.get_errno())
        os.write(made[1], b"!")
        os.read(mapped[0], 1)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.execvp(command[0], command)
    os.read(made[0], 1)
    for kind in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{kind}", "w", encoding="utf-8") as file:
            file.write(f"0 {outside} {count}\n")
    os.write(mapped[1], b"!")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
