"""What tests of verify share: verdicts by name, and files with other bytes."""

from pathlib import Path

from clipgguf import Verification

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
QUANTIZED = OUTTYPES[3:]


def verdicts(result: Verification) -> dict[str, str]:
    """Return the verdicts of all tensors by name."""
    return {tensor.name: tensor.verdict for tensor in result.tensors}


def bad(result: Verification) -> dict[str, str]:
    """Return the verdicts of those tensors that do not agree."""
    return {tensor.name: tensor.verdict for tensor in result.tensors if not tensor.is_good}


def changed(path: Path, offset: int, data: bytes) -> Path:
    """Copy a file with other bytes from an offset on."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    to = path.with_name("changed.gguf")
    to.write_bytes(content)
    return to
