"""What a tensor costs apart from its bytes: many small tensors and one large one, through the library.

No CLIP model has ten thousand tensors, so this goes beside the command line: the tensors of one safetensors file become
a plan, and that is written, all of them as f16.

    python -m benchmarks.tensor_count SAFETENSORS_FILE OUTPUT
"""

import math
import sys
from pathlib import Path

from gguf import GGMLQuantizationType

from clipgguf.checkpoint.safetensors import read_safetensors_header
from clipgguf.element_types import tensor_nbytes
from clipgguf.plan import Plan, PlannedTensor
from clipgguf.writer import write_plan
from tests.checkpoints import Shapes, write_safetensors

# 40 kB in f32: ten times the biases and norms of ViT-L, a hundredth of its smallest matrices.
SMALL = (100, 100)


def write_tensors(path: Path, count: int) -> None:
    """Write a safetensors file of f32 tensors: ``count`` small ones, all of one shape."""
    _write(path, {f"tensor.{n}.weight": SMALL for n in range(count)})


def write_one_tensor(path: Path, count: int) -> None:
    """Write a safetensors file of one f32 tensor with as many bytes as ``count`` small ones."""
    _write(path, {"tensor.weight": (count * SMALL[0], SMALL[1])})


def _write(path: Path, shapes: Shapes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    write_safetensors(partial, shapes)
    partial.replace(path)


def convert_tensors(source: Path, output: Path) -> None:
    """Write all tensors of a safetensors file to a GGUF file as f16, without metadata."""
    f16 = GGMLQuantizationType.F16
    tensors = tuple(
        PlannedTensor(tensor, tensor.name, tensor.shape, f16, tensor_nbytes(math.prod(tensor.shape), f16))
        for tensor in read_safetensors_header(source)
    )
    write_plan(Plan(output.name, (), tensors, (), ()), output)


if __name__ == "__main__":
    convert_tensors(Path(sys.argv[1]), Path(sys.argv[2]))
