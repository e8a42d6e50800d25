"""Makes the values of a recipe again: constants and options, as the recorded program had given them to Triton.

A recipe may be anybody's. Nothing is called for it but types of Triton's; members of enums are looked up, named tuples
and dataclasses are filled without their constructors.
"""

from __future__ import annotations

import dataclasses
import sys
from enum import Enum, EnumMeta

from gpucache.warm.replay.functions import Functions, digest_of
from gpucache.warm.replay.source_files import CannotImportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from gpucache.kernels.recipe import Function


class ValueFactory:
    """Makes what `gpucache.kernels.recipe.decode` asks for (its `Make`); ``triton`` is the module `running_triton`."""

    def __init__(self, functions: Functions, triton: ModuleType) -> None:
        self._functions = functions
        self._triton = triton
        self.changed = ""
        """The name of a function that was found and has not the recorded digest; ``""`` where there is none."""

    def function(self, function: Function) -> object:
        """The function of Triton's."""
        found = self._functions.find(function)
        if function.cache_key and digest_of(found) != function.cache_key:
            self.changed = f"{function.module}.{function.qualname}"
        return found

    def enum(self, module: str, qualname: str, name: str) -> object:
        """The member of an enum."""
        cls = self._functions.find_class(module, qualname)
        if not isinstance(cls, EnumMeta) or not issubclass(cls, Enum):
            raise CannotImportError(f"{module}.{qualname} is no enum now")
        member = cls._member_map_.get(name)
        if member is None:
            raise CannotImportError(f"{module}.{qualname} has no member {name} now")
        return member

    def namedtuple(self, module: str, qualname: str, values: list[object]) -> object:
        """The named tuple, without a call of its class."""
        cls = self._functions.find_class(module, qualname)
        fields = vars(cls).get("_fields")
        if cls.__bases__ != (tuple,) or type(fields) is not tuple:
            raise CannotImportError(f"{module}.{qualname} is no named tuple now")
        if len(fields) != len(values):
            raise CannotImportError(f"{module}.{qualname} has other fields now")
        return tuple.__new__(cls, values)

    def dataclass(self, module: str, qualname: str, fields: dict[str, object]) -> object:
        """The value of a dataclass, such as a layout of Gluon, without a call of its class."""
        cls = self._functions.find_class(module, qualname)
        known = vars(cls).get("__dataclass_fields__")
        if type(known) is not dict:
            raise CannotImportError(f"{module}.{qualname} is no dataclass now")
        if hasattr(cls, "__del__"):
            reason = f"{module}.{qualname} does something at its end, and is made by no recipe"
            raise CannotImportError(reason)
        if {field.name for field in dataclasses.fields(cls) if field.init} != fields.keys():
            raise CannotImportError(f"{module}.{qualname} has other fields now")
        made: object = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(made, name, value)
        return made

    def constexpr(self, value: object) -> object:
        """`triton.language.constexpr`."""
        return self._triton.constexpr(value)

    def dtype(self, name: str) -> object:
        """`triton.language.dtype`."""
        return self._triton.dtype(name)

    def pointer(self, element: object, address_space: int | str, is_const: bool) -> object:
        """`triton.language.pointer_type`."""
        return self._triton.pointer(element, address_space, is_const)

    def block(self, element: object, shape: list[int]) -> object:
        """`triton.language.block_type`."""
        return self._triton.block(element, shape)

    def triton_tuple(self, values: list[object]) -> object:
        """`triton.language.tuple`."""
        return self._triton.triton_tuple(values)

    def torch_dtype(self, name: str) -> object:
        """`torch.dtype`; torch has been imported by whoever needed it."""
        torch: Any = sys.modules.get("torch")
        found = getattr(torch, name, None)
        if torch is None or type(found) is not torch.dtype:
            raise CannotImportError(f"torch has no dtype {name}, or is not imported")
        return found
