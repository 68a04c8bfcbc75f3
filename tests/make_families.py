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
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from clipgguf.checkpoint import Checkpoint
from clipgguf.sources.local import LocalFolder
from tests import make_minicpmv
from tests.family_fixtures import DTYPES, FIXTURES, OUTTYPES, Fixture, changed, digest, rename
from tests.weights import Shapes

RELEASE = "0.3.36"
CACHE = Path.home() / ".cache" / "clipgguf-reference"
WANTED = re.compile(
    r"[^/]+/vendor/llama\.cpp/((?:conversion/|gguf-py/|tools/mtmd/legacy-models/)[^.].*|convert_hf_to_gguf\.py$)"
)
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


@dataclass(frozen=True)
class Correction:
    """What is done so that the reference, which has a fault, writes what it should.

    ``checkpoint`` are changes of the checkpoint's names before it reads them, ``file`` of the file's names after it has
    written them: regular expressions and what takes their place. ``config`` is merged into config.json, and before it
    the object ``lifted`` in it; ``processor`` into preprocessor_config.json. ``without`` are patterns of the tensors
    and keys that it writes and that the fixture shall not have. ``ones`` are so many axes of length 1 that the
    checkpoint's tensors of a pattern get at their ends before it reads them; ``types`` the types, of all outtypes, of
    the file's tensors of a pattern. ``constants`` are given to its classes, by "module.Class.NAME"; ``keys`` are added
    to the file's metadata. Without ``asserts`` it does not insist on the sizes of one published model. ``beside`` are
    folders that it looks for: the config.json and the shapes of the tensors.
    """

    why: str = ""
    checkpoint: tuple[tuple[str, str], ...] = ()
    file: tuple[tuple[str, str], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    lifted: str = ""
    ones: tuple[tuple[str, int], ...] = ()
    types: tuple[tuple[str, str], ...] = ()
    processor: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    asserts: bool = True
    beside: Mapping[str, tuple[dict[str, Any], Shapes]] = field(default_factory=dict)


# What the reference's files have of audio.
AUDIO = (r"clip\.audio\.", r"clip\.has_audio_encoder", r"a\.", r"mm\.a\.")

_ROW_END = Correction(
    why="It drops whatever is called language_model.*, and with it the row of the embeddings that tools/mtmd asks for.",
    checkpoint=((r"^(model\.)?language_model\.(model\.)?embed_tokens\.", "model.embed_tokens."),),
)
# By the fixture's name.
CORRECTIONS: dict[str, Correction] = {
    "cogvlm": Correction(
        why="It does not write the activation, for which its reader takes quick GELU; the model has GELU.",
        keys={"clip.use_gelu": ["BOOL", True]},
    ),
    "dots3_note": Correction(why="The image part alone is written yet.", without=AUDIO),
    "gemma3--resaved": Correction(
        why="It does not know the tower as transformers 5 saves it, without 'vision_model.' in its names.",
        checkpoint=((r"^vision_tower\.", "vision_tower.vision_model."),),
    ),
    "gemma3n": Correction(
        why="The reference leaves the scales of layers flat, which llama.cpp cannot multiply channels by: it aborts. "
        "ggml takes depthwise kernels in F16 only, others in F16 and F32, and aborts on the reference's bf16 and f32 "
        "files. The image part alone is written yet; llama.cpp runs no audio of Gemma 3n.",
        ones=((r"layer_scale\.gamma$", 2),),
        types=(
            (r"v\..*(dw_\w+\.conv|down_conv)\.weight", "F16 F16 F16 F16"),
            (r"v\.(blk|msfa)\..*(conv\w*|proj)\.weight", "F32 F16 F16 F16"),
        ),
        without=AUDIO,
    ),
    "gemma4": Correction(
        why="It names no activation, so that llama.cpp computes quick GELU, where Gemma4VisionMLP has GELU: of a tiny "
        "model's features, the difference to transformers' is 3.7 % without the key and 0.7 % with it.",
        keys={"clip.use_gelu": ["BOOL", True]},
    ),
    "gemma4_unified": Correction(
        why="The image part alone is written yet.",
        without=AUDIO,
    ),
    "granite4_vision--from_the_front": Correction(
        why="It sorts deepstack_layer_map before it counts the projectors, and takes hidden state 2 for block 2's, "
        "which is block 1's, as transformers counts; so it gets a sorted map of layers counted from the back.",
        checkpoint=(
            (r"layerwise_projectors\.0", "layerwise_projectors.x"),
            (r"layerwise_projectors\.1", "layerwise_projectors.0"),
            (r"layerwise_projectors\.x", "layerwise_projectors.1"),
        ),
        config={"deepstack_layer_map": [[-3, 1], [-1, 0]], "spatial_vision_layer": -1},
    ),
    "internvl--hf": Correction(
        why="It drops every tensor without 'model.' before it, and writes a file without any.",
        checkpoint=((r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),),
    ),
    "lfm2_vl--resaved": Correction(
        why="It does not know the tower as transformers 5 saves it, without 'vision_model.' in its names.",
        checkpoint=((r"^model\.vision_tower\.", "model.vision_tower.vision_model."),),
    ),
    "llama4": Correction(
        why="Gemma 4's norm after attention has the same name, so that it takes the second norm for one.",
        file=((r"attn_post_norm", "ln2"),),
    ),
    "mimo_v2": Correction(
        why="The image part alone is written yet; without audio the reference converts nothing.",
        without=AUDIO,
        beside={
            "audio_tokenizer": (
                {
                    "d_model": 64,
                    "encoder_ffn_dim": 160,
                    "encoder_attention_heads": 2,
                    "encoder_layers": 4,
                    "n_mels": 128,
                    "encoder_attn_window_size": [16, 0],
                },
                {"encoder.quantizer.vq.layers.0._codebook.embed": (4, 64)},
            )
        },
    ),
    "nemotron_nano_v2_vl": Correction(
        why="It takes the sizes of ViT-H for granted, whatever the configuration says, and ImageNet's statistics for "
        "those that the processor calls norm_mean and norm_std.",
        processor={"image_mean": [0.25, 0.5, 0.75], "image_std": [0.5, 0.25, 0.125]},
        constants={
            "nemotron.NemotronNanoV2VLModel._vit_hidden_size": 64,
            "nemotron.NemotronNanoV2VLModel._vit_intermediate_size": 160,
            "nemotron.NemotronNanoV2VLModel._vit_num_layers": 4,
            "nemotron.NemotronNanoV2VLModel._vit_num_heads": 2,
        },
    ),
    "pixtral": _ROW_END,
    "pixtral--mistral3": _ROW_END,
    "qwen2_5_vl--in_memory": Correction(
        why="It drops whatever is not called visual.*, and writes a file without tensors.",
        checkpoint=((r"^model\.visual\.", "visual."),),
    ),
    "qwen3_omni_moe": Correction(
        why="It looks for thinker.visual.* under a name that it has taken away before, and wants both towers; it is "
        "given the image tower as Qwen3-VL's, which it is.",
        checkpoint=(
            (r"^thinker\.visual\.", "model.visual."),
            (r"\.merger_list\.", ".deepstack_merger_list."),
            (r"(merger\.|merger_list\.\d+\.)ln_q\.", r"\1norm."),
            (r"(merger\.|merger_list\.\d+\.)mlp\.0\.", r"\1linear_fc1."),
            (r"(merger\.|merger_list\.\d+\.)mlp\.2\.", r"\1linear_fc2."),
        ),
        config={"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"},
        lifted="thinker_config",
    ),
}


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
        native = [] if "config.json" in fixture.files else ["--mistral-format"]
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
    for name, (values, shapes) in correction.beside.items():
        Fixture(name, {"config.json": values}, shapes, {}, {}).write(model / name, dtype)
    return model


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with others in it, and objects in it merged likewise."""
    return {**values, **{k: merged(values[k], v) if isinstance(v, dict) else v for k, v in changes.items()}}


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
            files = {
                file: json.loads((arguments.model / file).read_text())
                for file in JSON_FILES
                if (arguments.model / file).exists()
            }
            shapes = {
                name: tensor.shape
                for name, tensor in sorted(Checkpoint.open(LocalFolder(arguments.model)).tensors.items())
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
