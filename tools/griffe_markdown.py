"""A griffe extension: docstrings are plain text, the site is Markdown. Escape what Markdown would take for markup.

Shapes such as (b, *s) would come out in italics, and an argument described as "> 0" as a quotation.
"""

import re
from typing import Any

import griffe

_CODE = re.compile(r"(``.+?``|`[^`\n]+`)")
_STAR = re.compile(r"(?<=[(\s])\*(?=\w)")
_GREATER = re.compile(r"(?m)(^\s*(?:[\w, ]+: )?)>(?=[ =])")


def escape(text: str) -> str:
    """Escape stars of shapes and leading inequality signs, outside code spans."""
    parts = _CODE.split(text)
    parts[::2] = [_STAR.sub(r"\\*", _GREATER.sub(r"\1\\>", part)) for part in parts[::2]]
    return "".join(parts)


class PlainDocstrings(griffe.Extension):
    """Applies `escape` to every docstring of the package."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = escape(obj.docstring.value)
