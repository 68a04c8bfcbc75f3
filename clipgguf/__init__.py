"""Turn the image encoders of checkpoints into GGUF files, without torch and in constant memory.

    from clipgguf import convert

    result = convert("clip-vit-base-patch32", "out/")
    print(result.path)

The names below are the whole public interface. Each is imported when it is first asked for, so that
``clipgguf --version`` does not wait for what it never uses.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipgguf.conversion import Conversion, convert, plan
    from clipgguf.errors import CheckpointError, ClipGGUFError, ConfigError, OutputError
    from clipgguf.inspection import Inspection, inspect
    from clipgguf.options import Options
    from clipgguf.upgrading import Upgrade, upgrade
    from clipgguf.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ClipGGUFError",
    "ConfigError",
    "Conversion",
    "Inspection",
    "Options",
    "OutputError",
    "Upgrade",
    "Verification",
    "__version__",
    "convert",
    "inspect",
    "plan",
    "upgrade",
    "verify",
]

_MODULES = {
    "conversion": ("Conversion", "convert", "plan"),
    "options": ("Options",),
    "errors": ("CheckpointError", "ClipGGUFError", "ConfigError", "OutputError"),
    "inspection": ("Inspection", "inspect"),
    "upgrading": ("Upgrade", "upgrade"),
    "verification": ("Verification", "verify"),
}


def __getattr__(name: str) -> object:
    """Import a public name."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"clipgguf.{module}"), name)
    raise AttributeError(f"module 'clipgguf' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
