"""What the build adds to the Python files: the compiled encoders, where there is a compiler.

With a library, the wheel is one for this platform (``py3-none-PLATFORM``). Without a compiler that works, or with
CLIPGGUF_PURE=1, it is ``py3-none-any``, and numpy does the work. An editable install has the library beside its source.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags


class CompiledEncoders(BuildHookInterface):
    """The hook of ``[tool.hatch.build.targets.wheel.hooks.custom]``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library into the wheel, or beside its source where ``version`` is "editable"."""
        sys.path.insert(0, self.root)
        try:
            from clipgguf.kernels import LIBRARY, is_pure
            from clipgguf.kernels.build import build, remove
        finally:
            sys.path.remove(self.root)
        if version == "editable":
            library = LIBRARY
        else:
            self._directory = tempfile.TemporaryDirectory()
            library = Path(self._directory.name) / LIBRARY.name
        if is_pure():
            remove(library)
        elif build(library) and version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"
            build_data["force_include"][str(library)] = f"clipgguf/kernels/{LIBRARY.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled for the wheel."""
        if version != "editable":
            self._directory.cleanup()


def _platform() -> str:
    """Return the platform for which a compiler makes libraries without being told."""
    # The tags of PEP 600 and 656 promise that a wheel runs on other distributions, which only auditwheel can tell.
    return next(tag.platform for tag in sys_tags() if not tag.platform.startswith(("manylinux", "musllinux")))
