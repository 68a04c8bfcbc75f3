"""Arguments and options that several commands share; those of a conversion are the fields of ``Options``."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from clipgguf.options import Options, Outtype, ProjectorType

MODEL_DIR = typer.Argument(
    metavar="MODEL_DIR",
    help="Directory of the model (config.json and its weights), or a file of weights in it; also hf://OWNER/NAME, or "
    "an address that begins with s3://, gs://, az:// or https://.",
)
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, metavar="N", help="Threads that do the work, at most 64. [default: the cores, at most 8]"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables, for programs.")]

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY

# What the command line takes the fields for, and calls their values; all others are switches.
_TYPES: dict[str, tuple[Any, str | None]] = {
    "name": (str | None, "NAME"),
    "metadata": (str | None, "FILE"),
    "outtype": (Outtype | None, None),
    "image_mean": (tuple[float, float, float] | None, "R G B"),
    "image_std": (tuple[float, float, float] | None, "R G B"),
    "llava_projector": (str | None, "PATH"),
    "vision_tower": (str | None, "DIR"),
    "vision_config": (str | None, "FILE"),
    "feature_layer": (int | None, "N"),
    "projector_type": (ProjectorType | None, None),
    "variant": (str | None, "NAME"),
    "vocab": (str | None, "PATH"),
    "revision": (str | None, "REVISION"),
}


def takes_options(*, verifies: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of a conversion, in place of its parameter ``options``.

    ``verifies`` leaves out those that a GGUF file tells by itself.
    """
    options = [option for option in fields(Options) if not (verifies and option.metadata["told"])]
    taken = {option.name: _parameter(option) for option in options}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: value for name in taken if (value := arguments.pop(name)) is not None}
            command(options=given, **arguments)

        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            parameters += taken.values() if name == "options" else [parameter.replace(kind=KEYWORD_ONLY)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # Typer looks there.
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(option: "Field[Any]") -> inspect.Parameter:
    """Return a field as a command's parameter."""
    kind, metavar = _TYPES.get(option.name, (bool, None))
    flag = f"--{option.name.replace('_', '-')}"
    shown = typer.Option(flag, metavar=metavar, case_sensitive=False, help=option.metadata["text"])
    default = False if kind is bool else None
    return inspect.Parameter(option.name, KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])
