"""Replay recipes in this process: ``python replay_recipes.py ROOT FILE [TARGET]``, with `REPLAY_SETTINGS` as JSON.

Prints one JSON object a recipe: the outcome. The settings are arguments of `replay` and `import_functions`; ``path``
comes before all others on ``sys.path``.
"""

from __future__ import annotations

import json
import os
import sys

from gpucache.kernels.recipe_lines import BadLine, read_recipe_file
from gpucache.values import as_dict
from gpucache.warm.replay import import_functions, prepare, replay
from gpucache.warm.targets import parse_target


def main() -> None:
    root, file, *more = sys.argv[1:]
    settings = json.loads(os.environ.get("REPLAY_SETTINGS", "{}"))
    sys.path[:0] = settings.pop("path", [])
    named = {name: settings.pop(name) for name in ("main", "sources") if name in settings}
    target = parse_target(more[0]) if more else None
    prepare()
    functions = import_functions(**named)
    for recipe in read_recipe_file(file):
        assert not isinstance(recipe, BadLine), recipe
        outcome = replay(recipe, target, functions, root=root, **settings)
        sys.stdout.write(json.dumps(as_dict(outcome)) + "\n")


if __name__ == "__main__":
    main()
