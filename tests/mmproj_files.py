"""Files of LLaVA's image encoders: converted from a whole model, and what files from before lack."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from clipgguf import Options, convert
from tests.clip_checkpoints import write_clip, write_tower
from tests.llava_checkpoints import Llava, write_hf, write_original, write_projector

# What today's llama.cpp asks for, and the torch script did not write.
NEW_KEYS = ("clip.projector_type", "clip.vision.feature_layer")


def mmproj(directory: Path, llava: Llava | None = None, **options: Any) -> Path:
    """Convert a whole model: transformers' if it has such a projector, or LLaVA's own and a tower beside it."""
    llava = llava or Llava()
    if llava.projector == "mlp":
        model = write_hf(directory / "m", llava)
    else:
        model = write_original(directory / "m", llava)
        options["vision_tower"] = write_tower(directory / "vit", "vision", llava.clip)
    return convert(model, directory / "mmproj.gguf", options=Options(**options)).path


def with_config(llava: Llava, **config: Any) -> Llava:
    """Return a model whose LLaVA config.json says something else."""
    return replace(llava, config=config)


def the_scripts_way(directory: Path, llava: Llava, **options: Any) -> Path:
    """Convert by the first of the four ways: a CLIP directory, and a projector in a file of torch's."""
    clip = write_clip(directory / "clip", llava.clip)
    projector = write_projector(directory / "llava.projector", llava)
    return convert(clip, directory / "out", options=Options(llava_projector=projector, **options)).path
