"""Make the golden values of ``tests/golden.py`` anew: run the torch reference on its cases and print the table.

    pip install -e .[reference] && python -m tests.make_golden

Needs torch and transformers. That transformers finds every parameter of the model in the checkpoints is also what shows
that the names in ``tests/checkpoints.py`` are the real ones.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

from tests.golden import CASES
from tests.torch_reference import convert_with_torch


def main() -> None:
    """Print the table."""
    sys.stdout.write("GOLDEN: dict[str, tuple[str, str]] = {\n")
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            path = convert_with_torch(case.write(Path(directory)), Path(directory, "out"), **case.options)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sys.stdout.write(f"    {case.name!r}: (\n        {path.name!r},\n        {digest!r},\n    ),\n")
    sys.stdout.write("}\n")


if __name__ == "__main__":
    main()
