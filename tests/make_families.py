"""Make the families' fixtures: let llama.cpp's own converter convert their tiny checkpoints.

    python -m tests.make_families [NAME ...]           # the reference's part of the fixtures, anew
    python -m tests.make_families NAME --from MODEL    # a new fixture, with a small checkpoint's names, shapes and JSON

NAME is a family's module, or MODULE--VARIANT for another of its models.

The converter is taken from the source distribution of llama-cpp-python, which has llama.cpp inside: fetched once with
pip into ``--cache``. It runs in a process of its own, and needs what ``pip install -e '.[reference]'`` installs.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from clipgguf.checkpoint import Checkpoint
from clipgguf.sources.local import LocalFolder
from tests import make_minicpmv
from tests.corrections import CORRECTIONS, Correction
from tests.family_fixtures import DTYPES, FIXTURES, OUTTYPES, Fixture, changed, digest, rename, sample
from tests.llama_cpp_converter import CACHE, fetch

# What depends on which tensors it writes, and on the names of directories: of no use where it is corrected.
GUESSED = ("general.name", "general.basename", "general.finetune", "general.version", "general.size_label")
JSON_FILES = (
    "config.json",
    "params.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tekken.json",
)


def convert_all(home: Path, jobs: Sequence[Sequence[str]], correction: Correction) -> None:
    """Run the reference once for each list of arguments. Raises CalledProcessError when it fails."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    # Without vector instructions, of which each processor has its own, so that the last bits are the same everywhere.
    plain = {"ATEN_CPU_CAPABILITY": "default"}
    script, constants = str(Path(__file__).with_name("run_reference.py")), json.dumps(correction.constants)
    command = [sys.executable, *([] if correction.asserts else ["-O"]), script, str(home), constants]
    subprocess.run(command, input=json.dumps(jobs), text=True, check=True, env=offline | plain)


def reference(fixture: Fixture, home: Path) -> dict[str, Any]:
    """Return the reference's part of a fixture."""
    if fixture.module == "minicpmv":
        read, records = make_minicpmv.reference(fixture, home)
        return {"metadata": keys(read, is_corrected=True), "tensors": records}
    correction = CORRECTIONS.get(fixture.name, Correction())
    metadata: dict[str, Any] = {}
    tensors: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        models = {d: write_for_reference(fixture, Path(directory, d, fixture.name), d) for d in DTYPES}
        files = {(d, outtype): Path(directory, f"{d}-{outtype}.gguf") for d in DTYPES for outtype in OUTTYPES}
        native = ["--mistral-format"] if fixture.config_name == "params.json" else []
        convert_all(
            home,
            [
                [str(models[dtype]), "--mmproj", "--outtype", outtype, "--outfile", str(path), *native]
                for (dtype, outtype), path in files.items()
            ],
            correction,
        )
        for (dtype, outtype), path in files.items():
            read = GGUFReader(path)
            if outtype == "f32":
                metadata = {**keys(read, is_corrected=fixture.name in CORRECTIONS), **correction.keys}
            for tensor in read.tensors:
                shape = [int(n) for n in reversed(tensor.shape)]
                name = changed(tensor.name, correction.file)
                record = tensors.setdefault(name, {"shape": shape, "types": {}, "hashes": {}})
                kind = tensor.tensor_type.name
                record["types"][outtype] = kind
                if within := [most for pattern, most in correction.within if re.fullmatch(pattern, name)]:
                    some = record.setdefault("sample", {"within": within[0], "values": {}})
                    some["values"][dtype] = sample(tensor.data)
                    continue
                record["hashes"][f"{dtype} {kind}"] = digest(tensor.data.tobytes())
    for name, record in tensors.items():
        own = next((types for pattern, types in correction.types if re.fullmatch(pattern, name)), None)
        record["types"] = own or " ".join(record["types"][outtype] for outtype in OUTTYPES)
    without = re.compile("|".join(correction.without) or r"(?!)")
    return {
        "metadata": {key: value for key, value in metadata.items() if not without.match(key)},
        "tensors": {name: record for name, record in sorted(tensors.items()) if not without.match(name)},
    }


def write_for_reference(fixture: Fixture, directory: Path, dtype: str) -> Path:
    """Write a checkpoint in one shard, with what the reference needs to do what it should."""
    correction = CORRECTIONS.get(fixture.name, Correction())
    model = fixture.write(directory, dtype)
    rename(model, correction.checkpoint, correction.ones)
    for name, changes in (("config.json", correction.config), ("preprocessor_config.json", correction.processor)):
        if changes:
            values = json.loads((model / name).read_text())
            if name == "config.json":
                values = {**values, **values.pop(correction.lifted, {})}
            (model / name).write_text(json.dumps(merged(values, changes)))
    return model


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with others in it, and objects in it merged likewise."""
    return {**values, **{k: merged(values.get(k, {}), v) if isinstance(v, dict) else v for k, v in changes.items()}}


def keys(read: GGUFReader, *, is_corrected: bool) -> dict[str, Any]:
    """Return a file's metadata as [types, value] by key, without what depends on the outtype."""
    skipped = ("general.file_type", *(GUESSED if is_corrected else ()))
    return {
        name: [" ".join(kind.name for kind in field.types), field.contents()]
        for name, field in read.fields.items()
        if not name.startswith("GGUF.") and name not in skipped
    }


def main() -> None:
    """Make the fixtures that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--from", dest="model", type=Path)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    home = fetch(arguments.cache)
    for name in arguments.names or [path.stem for path in sorted(FIXTURES.glob("*.json"))]:
        path = FIXTURES / f"{name}.json"
        if arguments.model is not None:
            inside = [f"{place.parent.name}/" for place in sorted(arguments.model.glob("*/config.json"))]
            files = {
                file: json.loads((arguments.model / file).read_text())
                for file in (*JSON_FILES, *(f"{folder}config.json" for folder in inside))
                if (arguments.model / file).exists()
            }
            shapes = {
                f"{folder}{name}": tensor.shape
                for folder in ("", *inside)
                for name, tensor in sorted(Checkpoint.open(LocalFolder(arguments.model / folder)).tensors.items())
            }
            path.write_text(json.dumps({"files": files, "shapes": shapes}))
        values = json.loads(path.read_text())
        values |= reference(Fixture.read(path), home)
        if path.stem in CORRECTIONS:
            values["corrected"] = {"why": CORRECTIONS[path.stem].why}
        path.write_text(text(values))


def text(values: dict[str, Any]) -> str:
    """Return a fixture as JSON with a line for every tensor."""
    lines = []
    for key, value in values.items():
        inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
        lines.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
