"""Turn CLIP and LLaVA checkpoints into GGUF files, without torch and in constant memory.

    from clipgguf import convert

    result = convert("clip-vit-base-patch32", "out/")
    print(result.path)

The names below are the whole public interface.
"""

from clipgguf.convert import Conversion, convert
from clipgguf.errors import CheckpointError, ClipGGUFError, ConfigError, OutputError
from clipgguf.inspect import Inspection, inspect
from clipgguf.upgrade import Upgrade, upgrade
from clipgguf.verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ClipGGUFError",
    "ConfigError",
    "Conversion",
    "Inspection",
    "OutputError",
    "Upgrade",
    "Verification",
    "__version__",
    "convert",
    "inspect",
    "upgrade",
    "verify",
]
