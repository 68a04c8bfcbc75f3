"""llama.cpp's own converter as a program: ``python -m tests.llama_cpp_converter CHECKPOINT OUT_DIR OUTTYPE``."""

import os
import sys
from pathlib import Path

from tests.make_families import CACHE, fetch


def main() -> None:
    """Become the converter."""
    checkpoint, out, outtype = sys.argv[1:]
    home = fetch(CACHE)
    script = [str(home / "convert_hf_to_gguf.py"), checkpoint, "--mmproj", "--outtype", outtype]
    environment = {
        **os.environ,
        "PYTHONPATH": str(home / "gguf-py"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    command = [sys.executable, *script, "--outfile", str(Path(out, f"reference-{outtype}.gguf"))]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
