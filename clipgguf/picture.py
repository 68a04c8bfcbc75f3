"""How many tokens of the language model one picture becomes, by what a family's tables and a file tell."""

from collections.abc import Mapping
from typing import Any

from clipgguf.family import Family


def merge_of(family: Family, values: Mapping[str, Any]) -> int | None:
    """Return how many patches, along one side, become one token; None where the file does not tell."""
    merge = values.get(family.merge) if isinstance(family.merge, str) else family.merge
    return merge if type(merge) is int and merge > 0 else None


def tokens_of(family: Family, values: Mapping[str, Any]) -> int | None:
    """Return how many tokens one picture of the tower's image size becomes, or one tile of it; None: not known.

    Tokens of text that a prompt has around them are not counted. Where patches are left over at the sides, readers
    differ in what they do with them.
    """
    image, patch, merge = values.get("vision.image"), values.get("vision.patch"), merge_of(family, values)
    if not image or not patch:
        return None
    side, rest = divmod(image // patch, merge) if merge else (0, 0)
    try:
        return None if rest else family.tokens(side, values) or None
    except KeyError:  # The file does not tell.
        return None
