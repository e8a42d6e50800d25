"""Recipes that leave the machine on which they were recorded: they name no absolute path of a source file.

Where a source file lies says who works on a machine and how that is laid out, and is of no use elsewhere: a module is
imported by its name wherever it is, and a program's own file is named by ``--main``. What is left of a path is what the
module's name says already, ``kernels/add.py`` of ``kernels.add``, or the file's name alone.
"""

from __future__ import annotations

from gpucache.kernels.recipe import BadRecipe, Unencodable, from_text, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gpucache.kernels.encoding import Function
    from gpucache.kernels.recipe import Recipe


def carried(recipe: bytes) -> bytes | None:
    """The line of a recipe without absolute paths of source files; None where the line is no recipe.

    What a user's constants, or a source that is kept with the recipe, have as text is left as it is: the kernel is made
    of that. A recipe without paths comes out as it went in, so that one that was carried twice has one digest.
    """
    try:
        return to_text(without_absolute_paths(from_text(recipe)))
    except (BadRecipe, Unencodable):
        return None


def without_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe, whose functions' files are relative to what their modules' names begin at."""
    constants = [(path, _carried_value(value)) for path, value in recipe.constants]
    kept = [one._replace(value=_carried_value(one.value)) for one in recipe.globals]
    return recipe._replace(
        function=_carried_function(recipe.function),
        signature={name: _carried_value(value) for name, value in recipe.signature.items()},
        constants=tuple(constants),
        options={name: _carried_value(value) for name, value in recipe.options.items()},
        globals=tuple(kept),
    )


def _carried_function(function: Function) -> Function:
    return function._replace(file=relative_file(function.module, function.file))


def _carried_value(value: Any) -> Any:
    """An encoded value, in which the functions (`gpucache.kernels.encoding.Kind`) have relative files."""
    if type(value) is list:
        return [_carried_value(one) for one in value]
    if type(value) is not dict:
        return value
    carried = {}
    for kind, content in value.items():
        if kind == "function":
            module, qualname, file, digest = content
            carried[kind] = [module, qualname, relative_file(module, file), digest]
        else:
            carried[kind] = _carried_value(content)
    return carried


def relative_file(module: str, file: str | None) -> str | None:
    """The file of a module as far as the module's name says where it is, else the name of the file alone.

    >>> relative_file("kernels.add", "/home/me/work/kernels/add.py")
    'kernels/add.py'
    >>> relative_file("kernels", "/home/me/work/kernels/__init__.py")
    'kernels/__init__.py'
    >>> relative_file("__main__", "/home/me/train.py"), relative_file("__main__", "<stdin>")
    ('train.py', '<stdin>')
    >>> relative_file("__main__", "/tmp/ipykernel_7/123.py")
    '<notebook>'
    """
    if file is None or file.startswith("<"):
        return file
    if "/ipykernel_" in file:
        return "<notebook>"
    stem = module.replace(".", "/")
    for whole in (f"{stem}.py", f"{stem}/__init__.py"):
        if f"/{file}".endswith(f"/{whole}"):
            return whole
    return file.rpartition("/")[2] or None
