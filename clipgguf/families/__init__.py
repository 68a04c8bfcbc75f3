"""Which family a checkpoint belongs to: one module each, imported when it is met."""

import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from clipgguf.checkpoint import CONTAINERS, Checkpoint
from clipgguf.checkpoint.not_weights import other_folder
from clipgguf.errors import CheckpointError, ConfigError, os_reason, shown
from clipgguf.family import Family
from clipgguf.inputs import Config, Inputs, Told, parts_of
from clipgguf.json_file import read_json_object
from clipgguf.model import Model, open_family
from clipgguf.options import Options, PathLike
from clipgguf.sources import File, Folder
from clipgguf.sources.given import hub_advice, place

# The module of each family: what of config.json it is met by, and what its files call the projector
# (clip.projector_type, or clip.vision.projector_type). It is met by a model_type, by a model_type of which the vision
# tower is another ("llava+pixtral"), or by a class in ``architectures``, which begins with a capital letter as no
# model_type does but one that is a class's name; the more special one counts. A module has the table FAMILY, or where
# there is more to do than to read tables, a function open_model.
MODULES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "audio_flamingo3": (("audioflamingo3",), ("musicflamingo",)),
    "clip": (("clip", "clip_text_model", "clip_vision_model", "siglip", "siglip_vision_model"), ()),
    "cogvlm": (("CogVLMForCausalLM",), ("cogvlm",)),
    "deepseek_ocr": (("DeepseekOCRForCausalLM", "UnlimitedOCRForCausalLM", "unlimited_ocr"), ("deepseekocr",)),
    "deepseek_ocr2": (("DeepseekOCR2ForCausalLM", "deepseek_ocr2"), ("deepseekocr2",)),
    "deepseek_v4_vision": (("DeepseekV4ForCausalLM", "deepseek_v4"), ("deepseek4v",)),
    "dots3_note": (
        ("dots3_note", "Dots3NoteForConditionalGeneration"),
        ("dots3note_v+dots3note_a", "dots3note_v", "dots3note_a"),
    ),
    "dots_ocr": (("dots_ocr",), ("dots_ocr",)),
    "exaone4_5": (("exaone4_5",), ("exaone4_5",)),
    "gemma3": (("gemma3",), ("gemma3",)),
    "gemma3n": (("gemma3n", "Gemma3nForConditionalGeneration"), ("gemma3nv", "gemma3nv+gemma3na")),
    "gemma4": (("gemma4",), ("gemma4v", "gemma4a", "gemma4v+gemma4a")),
    "gemma4_unified": (("gemma4_unified",), ("gemma4uv", "gemma4ua", "gemma4uv+gemma4ua")),
    "glm4v": (("glm4v", "glm4v_moe", "glm_ocr"), ("glm4v",)),
    "glm5_next": (("glm5_next",), ("glm5v",)),
    "glm_asr": (("Glmasr", "GlmasrModel"), ("glma",)),
    "granite4_vision": (("granite4_vision",), ("granite4_vision",)),
    "granite_speech": (("granite_speech", "granite_speech_plus"), ("granite_speech",)),
    "hunyuan_vl": (("hunyuan_vl",), ("hunyuanvl",)),
    "idefics3": (("idefics3", "smolvlm"), ("idefics3",)),
    "internvl": (("internvl", "internvl_chat", "interns1", "InternVisionModel"), ("internvl",)),
    "janus_pro": (("janus",), ("janus_pro",)),
    "kimi_k25": (("Glm5vForConditionalGeneration", "KimiK25ForConditionalGeneration", "kimi_k25"), ("kimik25",)),
    "kimi_vl": (("kimi_vl",), ("kimivl",)),
    "lfm2_audio": (("Lfm2AudioForConditionalGeneration", "lfm2_audio"), ("lfm2a",)),
    "lfm2_vl": (("lfm2_vl", "Lfm2VlForConditionalGeneration"), ("lfm2",)),
    "lighton_ocr": (
        ("LightOnOCRForConditionalGeneration", "LightOnOcrForConditionalGeneration", "lighton_ocr"),
        ("lightonocr",),
    ),
    "ling3_vl": (("BailingMoeV3VLForConditionalGeneration", "bailing_moe_v3_vl"), ("ling3vl",)),
    "llama4": (("llama4",), ("llama4",)),
    "llava": (("llava", "llava_next", "llava_onevision", "vipllava"), ("mlp", "ldp", "ldpv2")),
    "meralion2": (("meralion2", "MERaLiON2ForConditionalGeneration"), ("meralion",)),
    "mimo_v2": (("mimo_v2", "MiMoV2ForCausalLM"), ("mimovl+mimo_audio", "mimovl", "mimo_audio")),
    "minicpmv": (("minicpmv", "minicpmo"), ("resampler",)),
    "minicpmv4_6": (("minicpmv4_6",), ("minicpmv4_6",)),
    "minimax_m3": (("minimax_m3_vl",), ("minimax_m3",)),
    # It is met by its file, params.json; its files are Pixtral's.
    "mistral": ((), ()),
    "muse_glimmer": (("muse_glimmer",), ("muse-glimmer",)),
    "nemotron_nano_v2_vl": (
        ("NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Nano_VL_V2", "RADIOModel"),
        ("nemotron_v2_vl", "nemotron_v2_vl+parakeet", "parakeet"),
    ),
    "paddleocr_vl": (("paddleocr_vl", "PaddleOCRVisionModel"), ("paddleocr",)),
    "phi4_siglip": (("phi4-siglip", "Phi4ForCausalLMV"), ("phi4",)),
    "pixtral": (("llava+pixtral", "mistral3"), ("pixtral",)),
    # It is met by its weights, POCKET_TTS, which have no JSON beside them.
    "pocket_tts": ((), ("pockettts_spkenc+pockettts_gen", "pockettts_spkenc")),
    "qwen2_5_omni": (("qwen2_5_omni", "Qwen2_5OmniModel"), ("qwen2.5o",)),
    "qwen2_5_vl": (("qwen2_5_vl",), ("qwen2.5vl_merger",)),
    "qwen2_audio": (("qwen2_audio",), ("qwen2a",)),
    "qwen2_vl": (("qwen2_vl", "sarashina2_vision"), ("qwen2vl_merger",)),
    "qwen3_asr": (("qwen3_asr",), ("qwen3a",)),
    "qwen3_omni_moe": (("qwen3_omni_moe",), ("qwen3vl_merger+qwen3a",)),
    "qwen3_tts": (
        ("qwen3_tts", "Qwen3TTSForConditionalGeneration"),
        ("qwen3tts_spkenc+qwen3tts_gen", "qwen3tts_spkenc"),
    ),
    "qwen3_vl": (("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"), ("qwen3vl_merger",)),
    "step3p7": (("step3p7", "StepVLForConditionalGeneration", "Step3p7ForConditionalGeneration"), ("step3vl",)),
    "ultravox": (("ultravox", "UltravoxModel"), ("ultravox",)),
    "voxtral": (("voxtral",), ("voxtral",)),
    "youtu_vl": (("YoutuVLForConditionalGeneration", "youtu_vl"), ("youtuvl",)),
}
MODEL_TYPES = {model_type: module for module, (model_types, _) in MODULES.items() for model_type in model_types}
PROJECTORS = {projector: module for module, (_, projectors) in MODULES.items() for projector in projectors}
# What looks like a family that is supported, by model_type, and why no reader computes it.
_NOT_COMPUTED: Mapping[str, str] = {
    "glmasr": "transformers' layout of GLM-ASR has rotary positions, readers add a table of positions, which it lacks; "
    "the layout of model_type 'Glmasr', as it was published first, is supported",
    "musicflamingo": "it rotates the features by their times (rotary time embeddings), which readers do not; "
    "model_type 'audioflamingo3' is supported",
    "pocket_tts": "transformers' layout of Pocket TTS has other names; the one that was published first, without a "
    "config.json, is supported",
}
LLAVA_KEYS = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size")
OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_NAMES = re.compile(r"visual\.|(text\.)?transformer\.resblocks\.")
# What is looked for in nearly every directory.
EXPECTED = (
    *("config.json", OPEN_CLIP_CONFIG, "params.json", "preprocessor_config.json", "processor_config.json"),
    *("generation_config.json", "README.md", "vocab.json"),
)
# Mistral's own layout.
PARAMS = "params.json"
# What names begin with in Pocket TTS, and in no other model.
POCKET_TTS = "flow_lm.flow_net."


def open_model(given: PathLike, options: Options, told: Told | None = None) -> Model:
    """Open a checkpoint, a directory or a file of weights in one: read its JSON and headers, find out what it is.

    ``told`` is what a GGUF file tells that is verified. Raises ConfigError or CheckpointError when it is nothing that
    can be converted as requested, UsageError when there are options that do not apply to it.
    """
    try:
        model = place(given, options.revision)
        folder = model.folder if isinstance(model, File) else model
        with _telling_what_was_refused(folder):
            opened = _open(model, options, told)
    except OSError as e:  # A directory that may not be searched, a name that is too long.
        raise CheckpointError(f"{e.filename or given}: cannot be read: {os_reason(e)}") from e
    description = opened.family.description or f"{_encoder(opened.family)} of {opened.family.title}"
    uses = opened.uses | (set() if isinstance(model, File) else {"variant"})
    uses |= set() if folder.revision is None else {"revision"}
    options.refuse_unused(uses, f"{model} gives {'an' if description[0] in 'aeiou' else 'a'} {description}")
    notes = (_refused_line(folder, folder.refused),) if folder.refused else ()
    return replace(opened, place=model, notes=(*opened.notes, *notes))


@contextlib.contextmanager
def _telling_what_was_refused(folder: Folder) -> Iterator[None]:
    """Add to an error that names files which the server did not let us read that it did not."""
    try:
        yield
    except (CheckpointError, ConfigError) as e:
        text = str(e)
        names = [name for name in folder.refused if name in text]
        if not names or "answered 403" in text:
            raise
        raise type(e)(*e.problems, _refused_line(folder, names)) from e


def _refused_line(folder: Folder, names: Sequence[str]) -> str:
    count = "counts" if len(names) == 1 else "count"
    return f"{folder}: the server answered 403 Forbidden to {', '.join(names)}, which {count} as missing"


def _encoder(family: Family) -> str:
    return " and ".join({"vision": "image encoder", "audio": "audio encoder"}[part] for part in family.parts)


def _open(model: Folder | File, options: Options, told: Told | None) -> Model:
    directory = model.folder if isinstance(model, File) else model
    if isinstance(model, File):
        if not model.is_present:
            should = f"should be a model's directory, with config.json and its weights{hub_advice(model)}"
            raise CheckpointError(f"{model}: is missing, {should}")
        # Before its directory is looked at: somebody may have given something else than weights.
        model.open().close()
    directory.expect(EXPECTED, () if isinstance(model, File) else CONTAINERS)
    path, own = directory.file("config.json"), directory.file(OPEN_CLIP_CONFIG)
    if not path.is_present and not own.is_present and (what := other_folder(directory)):
        raise CheckpointError(f"{directory}: {what}")
    is_open_clip = _is_open_clip(model, directory, options)
    if is_open_clip:
        path = own
        if not path.is_present:
            what = "OpenCLIP's weights alone do not tell the activation and the number of attention heads"
            raise ConfigError(f"{path}: is missing; {what}")
    is_mistrals = not is_open_clip and _is_mistrals_own(model, directory)
    if is_mistrals:
        path = directory.file(PARAMS)
    is_pocket_tts = not path.is_present and _is_pocket_tts(model, directory)
    values = {} if is_pocket_tts else read_json_object(path)
    met = "open_clip" if is_open_clip else "mistral" if is_mistrals else "pocket_tts" if is_pocket_tts else None
    module = met or module_of(values)
    if options.llava_projector is not None and not is_open_clip:
        module = "llava"
    if module is None:
        raise ConfigError(f"{path}: {_why_not_supported(values)}")
    family = importlib.import_module(f"clipgguf.families.{module}")
    inputs = Inputs(model, Config(path, values), options, told=told)
    if hasattr(family, "open_model"):
        opened: Model = family.open_model(inputs)
        return opened
    return open_family(parts_of(family.FAMILY, inputs), inputs)


def module_of(config: Mapping[str, Any]) -> str | None:
    """Return the module of the family that a config.json describes; None when it is not known."""
    model_type = config.get("model_type")
    known = next((MODEL_TYPES[name] for name in _met_by(config) if name in MODEL_TYPES), None)
    # The original LLaVA's model_type is often that of its language model; Phi-4 vision has its keys, too.
    if known != "phi4_siglip" and any(key in config for key in LLAVA_KEYS):
        return "llava"
    if model_type is None and any(key in config for key in ("text_config", "vision_config")):
        return "clip"
    return known


def _met_by(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a family may be met by, the most special first."""
    tower = config.get("vision_config")
    tower = tower if isinstance(tower, dict) else {}
    for values in (tower, config):
        names = values.get("architectures")
        # A model_type is none there, whatever stands in a list of classes.
        classes = (name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
        yield from (name for name in classes if name[:1].isupper())
    model_type, tower_type = config.get("model_type"), tower.get("model_type")
    if isinstance(model_type, str):
        yield f"{model_type}+{tower_type}"
        yield model_type


def _why_not_supported(config: Mapping[str, Any]) -> str:
    """Return what is said of a config.json of no family: what it is, and what is like it."""
    import difflib  # Only an error needs it.

    model_type = config.get("model_type")
    if model_type is None:
        return "has no model_type; `clipgguf families` lists what is supported"
    if isinstance(model_type, str) and model_type in _NOT_COMPUTED:
        return f"is of model_type {shown(model_type)}, which is not supported: {_NOT_COMPUTED[model_type]}"
    what = f"is of model_type {shown(model_type)}, which is not supported"
    known = [name for name in MODEL_TYPES if "+" not in name]
    if isinstance(model_type, str) and (nearest := difflib.get_close_matches(model_type, known, 3, 0.6)):
        what += f"; {', '.join(map(repr, nearest))} {'are' if len(nearest) > 1 else 'is'}"
    return f"{what}; llama.cpp's converter does not know it either; `clipgguf families` lists what is supported"


def _is_mistrals_own(model: Folder | File, directory: Folder) -> bool:
    """Return whether the weights that will be read are in Mistral's own layout; transformers' may stand beside it."""
    if PARAMS not in directory or "config.json" not in directory:
        return PARAMS in directory
    weights = model.name if isinstance(model, File) else next((n for n in CONTAINERS if n in directory), "")
    return weights.startswith("consolidated")


def _is_pocket_tts(model: Folder | File, directory: Folder) -> bool:
    """Return whether weights without a config.json are Pocket TTS's, by their names."""
    first = next((name for name in CONTAINERS if name in directory), "")
    weights = model if isinstance(model, File) else directory.file(first)
    is_safetensors = ".safetensors" in weights.name
    return is_safetensors and bool(Checkpoint.open_file(weights, lambda n: n.startswith(POCKET_TTS)).tensors)


def _is_open_clip(model: Folder | File, directory: Folder, options: Options) -> bool:
    """Return whether the weights that will be read are OpenCLIP's, by the name of their file or config."""
    has_config, has_own = "config.json" in directory, OPEN_CLIP_CONFIG in directory
    if has_own and not has_config:
        return True
    if isinstance(model, File):
        if model.name.startswith("open_clip_"):
            return True
        # A training run calls its file anything ("epoch_3.pt"). With both configs beside it, or none, the names tell.
        return has_own == has_config and any(map(_OPEN_CLIP_NAMES.match, Checkpoint.open_file(model).tensors))
    if not has_config:
        # Only to say what is missing: OpenCLIP's config, or config.json.
        return any(name in directory for name in CONTAINERS if name.startswith("open_clip_"))
    return Checkpoint.find(directory, options.variant).name.startswith("open_clip_")
