"""Turn CLIP and LLaVA checkpoints into GGUF files, without torch and in constant memory.

    from clipgguf import convert

    result = convert("clip-vit-base-patch32", "out/")
    print(result.path)

The names below are the whole public interface.
"""

from typing import TYPE_CHECKING, Any

from clipgguf.errors import CheckpointError, ClipGGUFError, ConfigError, OutputError

if TYPE_CHECKING:
    from clipgguf.convert import Conversion, convert

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ClipGGUFError",
    "ConfigError",
    "Conversion",
    "OutputError",
    "__version__",
    "convert",
]


def __getattr__(name: str) -> Any:
    # numpy and gguf cost about 100 ms and 20 MB; whoever only asks for the version does not pay for them.
    if name in ("Conversion", "convert"):
        import importlib

        return getattr(importlib.import_module("clipgguf.convert"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
