"""What MiniCPM-V's fixtures have of llama.cpp's own script for it, which ``tests.make_families`` asks for.

The script (``tools/mtmd/legacy-models/minicpmv-convert-image-encoder-to-gguf.py``) writes f32 and f16. What matrices
are in bf16 and q8_0 is what gguf-py makes of them in f32. ``minicpmv-surgery.py``, which cuts the checkpoint in two for
the script, runs the model's remote code; here its few lines are done anew.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import quantize

from clipgguf.families.minicpmv import VERSIONS
from tests.family_fixtures import DTYPES, Fixture, digest

SCRIPT = "tools/mtmd/legacy-models/minicpmv-convert-image-encoder-to-gguf.py"
# Torchvision is not needed, and often one that does not fit torch.
RUN = "import runpy, sys; sys.modules['torchvision'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"


def reference(fixture: Fixture, home: Path) -> tuple[GGUFReader, dict[str, Any]]:
    """Return one of the script's files, and the fixture's tensors."""
    tensors: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for dtype in DTYPES:
            model = fixture.write(Path(directory, dtype, fixture.name), dtype)
            cut(model)
            for outtype in ("f32", "f16"):
                read = run(fixture, home, model, outtype)
                for tensor in read.tensors:
                    add(tensors, tensor.name, tensor.data, dtype, outtype)
    for record in tensors.values():
        record["types"] = " ".join(record["types"].values())
    return read, dict(sorted(tensors.items()))


def add(tensors: dict[str, dict[str, Any]], name: str, data: Any, dtype: str, outtype: str) -> None:
    """Add what a file of the script has of a tensor."""
    record = tensors.setdefault(name, {"shape": list(data.shape), "types": {}, "hashes": {}})
    kind = {"float32": "F32", "float16": "F16"}[data.dtype.name]
    record["types"][outtype] = kind
    record["hashes"][f"{dtype} {kind}"] = digest(data.tobytes())
    is_matrix = name.endswith(".weight") and data.ndim == 2 and name != "v.position_embd.weight"
    if outtype == "f32":
        for other in ("BF16", "Q8_0") if is_matrix else ():
            record["hashes"][f"{dtype} {other}"] = digest(quantize(data, GGMLQuantizationType[other]).tobytes())
    else:
        record["types"] |= {"bf16": "BF16", "q8_0": "Q8_0"} if is_matrix else {"bf16": kind, "q8_0": kind}


def cut(model: Path) -> None:
    """Write a checkpoint's tower and resampler as the script wants them."""
    import torch  # type: ignore[import-not-found, unused-ignore]
    from safetensors.torch import load_file

    tensors = {name: tensor.float() for name, tensor in load_file(model / "model.safetensors").items()}
    tower = {name.removeprefix("vpm."): tensor for name, tensor in tensors.items() if name.startswith("vpm.")}
    torch.save(tower, model / "minicpmv.clip")
    torch.save({n: t for n, t in tensors.items() if n.startswith("resampler.")}, model / "minicpmv.projector")


def run(fixture: Fixture, home: Path, model: Path, outtype: str) -> GGUFReader:
    """Run the script. Raises SystemExit with its output when it fails."""
    config, out = fixture.files["config.json"], model.with_name(outtype)
    version = VERSIONS[config["model_type"], str(config["version"])]
    command = [sys.executable, "-c", RUN, str(home / SCRIPT), "-m", str(model), "--output-dir", str(out)]
    options = ["--minicpmv_version", str(version), *(["--use-f32"] if outtype == "f32" else [])]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return GGUFReader(out / f"mmproj-model-{outtype}.gguf")
