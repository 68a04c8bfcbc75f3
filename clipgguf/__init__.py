"""Turn CLIP and LLaVA checkpoints into GGUF files, without torch and in constant memory.

    from clipgguf import convert

    result = convert("clip-vit-base-patch32", "out/")
    print(result.path)

The names below are the whole public interface.
"""

from clipgguf.convert import Conversion, convert
from clipgguf.errors import CheckpointError, ClipGGUFError, ConfigError, OutputError
from clipgguf.upgrade import Upgrade, upgrade

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ClipGGUFError",
    "ConfigError",
    "Conversion",
    "OutputError",
    "Upgrade",
    "__version__",
    "convert",
    "upgrade",
]
