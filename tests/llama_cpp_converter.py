"""llama.cpp's own converter as a program: ``python -m tests.llama_cpp_converter CHECKPOINT OUT_DIR OUTTYPE``."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

RELEASE = "0.3.36"
CACHE = Path.home() / ".cache" / "clipgguf-reference"
WANTED = re.compile(
    r"[^/]+/vendor/llama\.cpp/((?:conversion/|gguf-py/|tools/mtmd/legacy-models/)[^.].*|convert_hf_to_gguf\.py$)"
)


def fetch(cache: Path) -> Path:
    """Return the folder with convert_hf_to_gguf.py; needs the network once."""
    home = cache / f"llama.cpp-{RELEASE}"
    if (home / "convert_hf_to_gguf.py").is_file():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(cache)]
    subprocess.run([*download, f"llama-cpp-python=={RELEASE}"], check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(cache.glob(f"llama_cpp_python-{RELEASE}.tar.gz"))) as archive:
        for member in archive:
            match = WANTED.match(member.name)
            file = archive.extractfile(member) if match and member.isfile() and ".." not in member.name else None
            if match and file:
                target = home / match[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read())
    return home


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
