"""``clipgguf families``."""

from dataclasses import asdict

from clipgguf.cli.options import AsJson
from clipgguf.cli.output import show_json
from clipgguf.cli.tables import FOLD, show, table


def families_command(as_json: AsJson = False) -> None:
    """List the families of models that can be converted.

    A family is told by what config.json has as model_type, or as a class in architectures. "llava+pixtral" is llava
    with a vision_config of model_type pixtral. The projector is clip.projector_type of an mmproj file.
    """
    from clipgguf.supported import supported_families

    families = supported_families()
    if as_json:
        show_json([asdict(family) for family in families])
        return
    columns = {"family": FOLD, "model_type or class": FOLD, "projector": FOLD, "runs in": FOLD}
    show(
        table(
            columns,
            (
                (family.title, *(", ".join(part) for part in (family.met_by, family.projector_types, family.readers)))
                for family in families
            ),
        )
    )
