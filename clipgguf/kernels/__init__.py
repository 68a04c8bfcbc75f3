"""Encoders in compiled code, where its library is there and loads: ``encode.c``, which ``build.py`` compiles.

It gives the bytes of ``clipgguf.encode``'s numpy code, several times as fast. What is rare it leaves to that: NaNs,
infinities, what may become infinite, scales whose inverse is infinite, and a smallest value of -0 in a block.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # ``clipgguf --version`` does not wait for numpy.
    import numpy as np
    from numpy.typing import NDArray

    Encode = Callable[[NDArray[Any], NDArray[Any], NDArray[np.uint8]], int]

# Lies beside this file, and git does not know it.
LIBRARY = Path(__file__).with_name("encode.dll" if sys.platform == "win32" else "encode.so")
# The number at the end goes up with every change of encode.c that changes what it writes or how it is called: an
# editable install may have the library of an older checkout.
FUNCTION = "clipgguf_encode_1"
# In the order of the numbers that encode.c gives them.
_SOURCES = ("F64", "F32", "F16", "BF16")
_TARGETS = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
# Elements that are left to numpy together: so many that numpy's steps outweigh what calling them costs.
LEFT_TO_NUMPY = 1 << 14


def is_pure() -> bool:
    """Return whether CLIPGGUF_PURE asks for numpy's code alone: to be installed, or to run."""
    return os.environ.get("CLIPGGUF_PURE", "0") not in ("", "0")


@cache
def kernel() -> Callable[[int, int, int, int, int, int], int] | None:
    """Return the compiled function, or None where it is not wanted or cannot be had; ``encode.c`` has its arguments.

    ctypes calls it without holding the interpreter's lock.
    """
    if is_pure() or sys.byteorder != "little":
        return None
    try:
        function = getattr(ctypes.CDLL(str(LIBRARY)), FUNCTION)
    except (OSError, AttributeError):  # Missing, broken, another machine's; another version's.
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_size_t
    return function  # type: ignore[no-any-return]


def encoders() -> Literal["compiled", "numpy"]:
    """Return which encoders run."""
    return "numpy" if kernel() is None else "compiled"


def compiled(
    source_dtype: str, target: str, in_numpy: "Encode", block_elements: int, block_nbytes: int, *, plain: bool = False
) -> "Encode":
    """Return an encoder that does what ``in_numpy`` does, or that itself where there is no compiled one.

    ``target`` is the GGML type's name, of which ``block_elements`` take ``block_nbytes``. With ``plain``, it uses only
    what every processor of the machine's kind has.
    """
    function = kernel()
    if function is None or source_dtype not in _SOURCES or target not in _TARGETS:
        return in_numpy
    types = _SOURCES.index(source_dtype), _TARGETS.index(target)

    def encode(source: "NDArray[Any]", out: "NDArray[Any]", scratch: "NDArray[np.uint8]") -> int:
        if not (source.flags.c_contiguous and source.flags.aligned and out.flags.c_contiguous and out.flags.aligned):
            return in_numpy(source, out, scratch)
        assert len(source) % block_elements == 0
        assert len(source) // block_elements * block_nbytes <= out.nbytes
        start, end, to, count = source.ctypes.data, len(source), out.ctypes.data, 0
        done = 0
        while True:
            written = done // block_elements * block_nbytes
            done += function(*types, start + done * source.itemsize, to + written, end - done, plain)
            if done == end:
                return count
            part = source[done : done + LEFT_TO_NUMPY]
            first, last = (n // block_elements * block_nbytes // out.itemsize for n in (done, done + len(part)))
            count += in_numpy(part, out[first:last], scratch)
            done += len(part)

    return encode
