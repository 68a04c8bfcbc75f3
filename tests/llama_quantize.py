"""Build llama-quantize from the release that the fixtures are from: ``python -m tests.llama_quantize``.

It prints the directory to put on PATH, where ``python -m benchmarks`` looks for it. Needs cmake and a C++ compiler;
takes ten minutes on two cores.
"""

import subprocess
import sys
import tarfile

from tests.llama_cpp_converter import CACHE, RELEASE, fetch

OPTIONS = ("CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_CURL=OFF", "LLAMA_BUILD_TESTS=OFF")


def main() -> None:
    """Build it, unless it is there."""
    fetch(CACHE)
    root = CACHE / f"llama_cpp_python-{RELEASE}" / "vendor" / "llama.cpp"
    if not root.is_dir():
        with tarfile.open(CACHE / f"llama_cpp_python-{RELEASE}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    build = root / "build"
    subprocess.run(["cmake", "-S", root, "-B", build, *(f"-D{option}" for option in OPTIONS)], check=True)
    subprocess.run(["cmake", "--build", build, "--parallel", "--target", "llama-quantize"], check=True)
    sys.stdout.write(f"{build / 'bin'}\n")


if __name__ == "__main__":
    main()
