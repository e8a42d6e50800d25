"""Removes a directory once all processes are gone that used it: a program that is started before them.

Each of them holds one end of a pipe open, so that this program reads the end of it when the last of them ends, however
that is. It is executed by its path, by a Python without `site`, and imports nothing of gpucache.
"""

import os
import shutil
import sys


def main() -> None:
    """Wait for the end of stdin, and remove the directory that is the word of the command line."""
    while os.read(0, 512):
        pass
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
