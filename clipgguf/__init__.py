"""Turn the image encoders of checkpoints into GGUF files, without torch and in constant memory.

from clipgguf import convert

result = convert("clip-vit-base-patch32", "out/")
print(result.path)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipgguf.checkpoint.gguf_file import MetadataItem
    from clipgguf.conversion import Conversion, convert, plan
    from clipgguf.errors import CheckpointError, ClipGGUFError, ConfigError, OutputError, UsageError
    from clipgguf.inspection import Inspection, ProjectorSummary, TowerSummary, TypeSummary, inspect
    from clipgguf.options import Options, Outtype, PathLike, ProjectorType
    from clipgguf.planning import Plan, PlannedTensor
    from clipgguf.readers import Verdict
    from clipgguf.sources import Source
    from clipgguf.supported import SupportedFamily, supported_families
    from clipgguf.tensor import Computed, Joined, View
    from clipgguf.upgrading import Upgrade, upgrade
    from clipgguf.verification import Finding, TensorCheck, Verification, verify
    from clipgguf.verification.metadata import MetadataDifference
    from clipgguf.verification.values import Comparison
    from clipgguf.writer import Progress

__version__ = "0.1.0"

_MODULES = {
    "checkpoint.gguf_file": ("MetadataItem",),
    "conversion": ("Conversion", "convert", "plan"),
    "errors": ("CheckpointError", "ClipGGUFError", "ConfigError", "OutputError", "UsageError"),
    "inspection": ("Inspection", "ProjectorSummary", "TowerSummary", "TypeSummary", "inspect"),
    "options": ("Options", "Outtype", "PathLike", "ProjectorType"),
    "planning": ("Plan", "PlannedTensor"),
    "readers": ("Verdict",),
    "sources": ("Source",),
    "supported": ("SupportedFamily", "supported_families"),
    "tensor": ("Computed", "Joined", "View"),
    "upgrading": ("Upgrade", "upgrade"),
    "verification": ("Finding", "TensorCheck", "Verification", "verify"),
    "verification.metadata": ("MetadataDifference",),
    "verification.values": ("Comparison",),
    "writer": ("Progress",),
}
# fmt: off
__all__ = [
    "CheckpointError", "ClipGGUFError", "Comparison", "Computed", "ConfigError", "Conversion", "Finding", "Inspection",
    "Joined", "MetadataDifference", "MetadataItem", "Options", "OutputError", "Outtype", "PathLike", "Plan",
    "PlannedTensor", "Progress", "ProjectorSummary", "ProjectorType", "Source", "SupportedFamily", "TensorCheck",
    "TowerSummary", "TypeSummary", "Upgrade", "UsageError", "Verdict", "Verification", "View", "__version__", "convert",
    "inspect", "plan", "supported_families", "upgrade", "verify",
]
# fmt: on


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: ``clipgguf --version`` does not wait for what it never uses."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"clipgguf.{module}"), name)
    raise AttributeError(f"module 'clipgguf' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
