"""The JSON description of a tokenizer: which token plays which role, and which bytes a token spells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from unmask.errors import UserError

PAD, EOS, MASK = "[PAD]", "[EOS]", "[MASK]"
ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "mask": (MASK, "<mask>", "<|mask|>", "<|mdm_mask|>"),
    "eos": (EOS, "<eos>", "</s>", "<|endoftext|>", "<|eot_id|>", "<|im_end|>", "[SEP]"),
    "pad": (PAD, "<pad>", "<|pad|>", "<|endoftext|>"),
}
FILE_NAME = "tokenizer.json"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def read_description(path: Path) -> dict[str, Any]:
    """The parsed ``tokenizer.json`` at `path`, a file or the folder of one. Raises UserError if there is none."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"loading a tokenizer: no file {file}; give a tokenizer.json or a folder that holds one")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"loading a tokenizer: {file} is not valid JSON ({error})") from error
    if not isinstance(description, dict) or "model" not in description:
        raise UserError(f"loading a tokenizer: {file} has no 'model' entry; it is not a tokenizer.json")
    return description


def role_id(role: str, vocabulary: dict[str, int], description: dict[str, Any]) -> int:
    """Id of the token that plays `role` in `vocabulary`. Raises UserError if none of the accepted names is there."""
    names = ROLE_NAMES[role] + (ROLE_NAMES["eos"] if role == "pad" else ())
    for name in names:
        if name in vocabulary:
            return vocabulary[name]
    have = [token["content"] for token in description.get("added_tokens") or ()]
    raise UserError(
        f"loading a tokenizer: it has no {role} token (looked for {', '.join(names)}); its special tokens are "
        f"{', '.join(have) or 'none'}; name the right one with Tokenizer.from_file(path, {role}_token=...)"
    )


def rename_token(description: dict[str, Any], old: str, new: str) -> None:
    """Give the token `old` the name `new`, wherever the description spells it, with the same id."""
    added = description.get("added_tokens") or []
    model = description["model"]
    vocabulary = model.get("vocab", {})
    names = {token["content"] for token in added} | {
        entry if isinstance(vocabulary, dict) else entry[0] for entry in vocabulary
    }
    if old not in names:
        have = ", ".join(token["content"] for token in added) or "none"
        raise UserError(f"loading a tokenizer: it has no token {old!r}; its special tokens are {have}")
    if new in names:
        raise UserError(f"loading a tokenizer: {old!r} cannot serve as {new} because the file has a {new} already")
    for token in added:
        if token["content"] == old:
            token["content"] = new
    if isinstance(vocabulary, dict):
        model["vocab"] = {new if name == old else name: i for name, i in vocabulary.items()}
    else:
        model["vocab"] = [[new if name == old else name, *rest] for name, *rest in vocabulary]


def character_alphabet(description: dict[str, Any]) -> frozenset[str] | None:
    """Alphabet of a tokenizer made by `Tokenizer.characters`: its model drops any other character in silence."""
    model = description["model"]
    if model.get("type") != "BPE" or model.get("merges") or description.get("pre_tokenizer") is not None:
        return None
    if model.get("unk_token") is not None or model.get("byte_fallback"):
        return None
    return frozenset(token for token in model["vocab"] if len(token) == 1)


def type_names(part: dict[str, Any] | None) -> list[str]:
    """Type names of a pipeline part, in order: they pin what it does without depending on the file format."""
    if part is None:
        return []
    inner = [v for v in part.values() if isinstance(v, list)]
    return [
        part["type"],
        *(name for values in inner for v in values if isinstance(v, dict) for name in type_names(v)),
    ]


def byte_symbols() -> list[str]:
    """The printable symbol that byte-level BPE (GPT-2) writes for each of the 256 bytes, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


_BYTE_OF_SYMBOL = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def token_bytes(token: str, byte_level: bool) -> bytes:
    """UTF-8 bytes of `token`, spelled as byte-level BPE, byte fall-back, Metaspace or WordPiece do."""
    if byte_level:
        return bytes(_BYTE_OF_SYMBOL[c] for c in token)
    if match := _BYTE_PIECE.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.removeprefix("##").replace("\u2581", " ").encode()
