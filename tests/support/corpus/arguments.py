"""What stands for a tensor in a launch, without torch: Triton looks at its type, its address and its size."""

from __future__ import annotations


class Type(str):
    """The type of an element, whose text ends as that of torch's does."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return {"16": 2, "32": 4, "64": 8}.get(self[-2:], 1)


class Tensor:
    """What Triton reads of a tensor to specialise a kernel."""

    def __init__(
        self, dtype: str = "float32", shape: tuple[int, ...] = (64, 64), address: int = 4096
    ):
        self.dtype = Type(dtype)
        self.shape = shape
        self.address = address
        self.data = self
        self.device = "cuda:0"

    def data_ptr(self) -> int:
        """The address, of which Triton asks whether 16 divides it."""
        return self.address

    def ptr_range(self) -> int:
        """How many bytes lie behind the address; AMD's backend asks whether 32 bits are enough."""
        return 1 << 20

    def element_size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def stride(self, _: int | None = None) -> tuple[int, ...]:
        """Elements from one to the next, of a matrix that lies row by row."""
        return (self.shape[-1], 1)


F32 = Tensor("float32")
F16 = Tensor("float16")
BF16 = Tensor("bfloat16")
I32 = Tensor("int32")
I64 = Tensor("int64")
ODD = Tensor("float32", address=4100)
"""A tensor at an address that 16 does not divide."""
