"""Checkpoint folders: config.json, model.safetensors and tokenizer.json, complete or not there at all."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.config import NetworkConfig, class_path, from_config, resolve_class, to_config
from unmask.denoiser import Denoiser
from unmask.errors import UserError
from unmask.process import Process

if TYPE_CHECKING:
    from unmask.data.tokenizers import Tokenizer

FORMAT_VERSION = 1
CONFIG, WEIGHTS, TOKENIZER, TRAINING = "config.json", "model.safetensors", "tokenizer.json", "training"
_OURS = (CONFIG, WEIGHTS, TOKENIZER, TRAINING)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model with all that is needed to use it.

    Args:
        process: the noise it was trained for.
        denoiser: its law of the clean data; `denoiser.net.config` is a `NetworkConfig`.
        tokenizer: text to tokens, or None where the data is not text.
        card: where it comes from and how good it is, as JSON values.
    """

    process: Process
    denoiser: Denoiser
    tokenizer: Tokenizer | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> None:
    """Writes the folder so that it is seen complete or not at all; a failed write leaves the previous one as it was.

    Other files in the folder (logs, notes) are kept; `training/`, which belongs to the replaced weights, is not.

    Args:
        folder: where to; one process at a time.
        checkpoint: what to save.
        dtype: storage type of the floating-point weights (half the size with torch.float16); None keeps theirs.

    Raises:
        UserError: the folder's files of these names are no checkpoint's, or a weight overflows `dtype`.
        OSError: the disk refused.
    """
    with replace_folder(folder) as temporary:
        write_checkpoint(temporary, checkpoint, dtype=dtype)


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> None:
    """Writes the files of a checkpoint into an existing folder, one of `replace_folder`.

    Raises:
        UserError: tokenizer and process disagree, or a weight overflows `dtype`.
    """
    from safetensors.torch import save_file

    _check_tokenizer(checkpoint.tokenizer, checkpoint.process, "save_checkpoint")
    network: Any = checkpoint.denoiser.net
    denoiser = {"class": class_path(type(checkpoint.denoiser))} | checkpoint.denoiser.config()
    config = {
        "format_version": FORMAT_VERSION,
        "unmask_version": version("unmask"),
        "process": to_config(checkpoint.process),
        "denoiser": denoiser,
        "network": to_config(network.config),
        "tokenizer": None if checkpoint.tokenizer is None else TOKENIZER,
        "card": dict(checkpoint.card),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = {name: _stored(name, x, dtype) for name, x in own_tensors(checkpoint.denoiser).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    os.chmod(folder / WEIGHTS, 0o644)  # safetensors leaves it private to its writer
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save(folder)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once, under their first name."""
    state = module.state_dict()
    named = [name for name, _ in module.named_parameters()] + [name for name, _ in module.named_buffers()]
    return {name: state[name] for name in named if name in state}


def _stored(name: str, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    stored = x.detach().to("cpu", dtype if dtype is not None and x.is_floating_point() else None).contiguous()
    if stored.dtype != x.dtype and not bool(torch.isfinite(stored).all()) and bool(torch.isfinite(x).all()):
        raise UserError(f"save_checkpoint: {name} overflows {dtype}; save with dtype=torch.bfloat16 or None")
    return stored


# -- folders that appear at once -----------------------------------------------------------------------------------


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place when the block ends well, and vanishes if not.

    Everything is flushed to the disk before the two renames. A crash between them leaves the earlier checkpoint
    under a hidden name, where `load_checkpoint` finds it.

    Raises:
        UserError: `folder` holds files of these names that are no checkpoint's, or the working directory.
        OSError: the disk refused.
    """
    folder = Path(folder).absolute()
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a run that was killed while writing
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for path in (*sorted(temporary.rglob("*")), temporary):
            _sync(path)
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"save_checkpoint: {folder} is a file or a link; name a folder")
    if Path.cwd().is_relative_to(folder):
        raise UserError(f"save_checkpoint: {folder} holds the working directory; name a folder inside it")
    if (folder / CONFIG).exists():
        read_config(folder)  # raises unless it is a checkpoint's
    elif folder.is_dir() and any((folder / name).exists() for name in _OURS):
        raise UserError(f"save_checkpoint: {folder} holds another model's files; name a new folder")


def _swap(temporary: Path, folder: Path) -> None:
    previous = _previous(folder)
    if folder.exists():
        if previous.exists():  # left by a crash after the second rename
            _retire(previous, folder)
        os.replace(folder, previous)
    try:
        os.replace(temporary, folder)
    except OSError:
        if previous.exists():
            os.replace(previous, folder)
        raise
    _sync(folder.parent)
    if previous.exists():
        _retire(previous, folder)


def _retire(previous: Path, folder: Path) -> None:
    """Carries files that are no part of a checkpoint over to the new folder, and removes the old one."""
    for path in previous.iterdir():
        target = folder / path.name
        while path.name not in _OURS and target.exists():
            target = target.with_name(target.name + ".old")
        if path.name not in _OURS:
            os.replace(path, target)
    shutil.rmtree(previous, ignore_errors=True)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders, and needs no flush of them
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- loading -----------------------------------------------------------------------------------------------------------


def load_checkpoint(
    source: str | Path, *, device: torch.device | str = "cpu", extra: Mapping[str, type] | None = None
) -> Checkpoint:
    """The checkpoint of a local folder, or of a Hugging Face Hub id "owner/name" if no such folder exists.

    Weights come as float32, the denoiser in evaluation mode. No code of the checkpoint is run.

    Args:
        source: folder or Hub id.
        device: where the denoiser goes.
        extra: your own classes that the config may name, {"module.Class": Class}.

    Raises:
        UserError: nothing there, files missing, damaged, of another model or of a newer format; the text says which.
    """
    folder = find_folder(source)
    config = read_config(folder)
    process = from_config(config.get("process"), Process, extra)  # type: ignore[type-abstract]
    shape = from_config(config.get("network"), NetworkConfig, extra)  # type: ignore[type-abstract]
    denoiser = _build_denoiser(config.get("denoiser"), shape.build(), extra)
    _load_weights(denoiser, folder / WEIGHTS)
    tokenizer = None
    if config.get("tokenizer") is not None:
        from unmask.data.tokenizers import Tokenizer

        tokenizer = Tokenizer.load(_present(folder / TOKENIZER))
        _check_tokenizer(tokenizer, process, f"loading {folder}")
    card = config.get("card", {})
    return Checkpoint(process=process, denoiser=denoiser.to(device).eval(), tokenizer=tokenizer, card=card)


def find_folder(source: str | Path) -> Path:
    """The local folder of a checkpoint, fetched from the Hub if `source` looks like "owner/name" and is no folder.

    Raises:
        UserError: neither a folder nor a Hub id that can be fetched.
    """
    folder = Path(source).absolute()
    for candidate in (folder, _previous(folder) if folder.name else folder):  # see `replace_folder`
        if candidate.is_dir():
            return candidate
    if folder.exists():
        raise UserError(f"loading {source}: it is a file; name the folder that holds {CONFIG} and {WEIGHTS}")
    if not _HUB_ID.fullmatch(str(source)):
        raise UserError(f"loading {source}: there is no such folder; check the path, or name a Hub id 'owner/name'")
    return _fetch(str(source))


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, TOKENIZER]))
    except (OSError, ValueError, RuntimeError) as error:  # connection, unknown repository, invalid name, offline mode
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"loading {name}: there is no such folder here, and the Hugging Face Hub gave no model of that name "
            f"({reason}); check the path or the name, and whether the network can be reached"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint folder.

    Raises:
        UserError: missing, not JSON, not a checkpoint's, or of a newer format.
    """
    path = _present(folder / CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the file again or correct it there") from error
    met = config.get("format_version") if isinstance(config, dict) else None
    if type(met) is not int:
        raise UserError(f'{path}: has no whole number "format_version", so it is not a config written by unmask')
    if met > FORMAT_VERSION:
        writer = config.get("unmask_version", "a newer one")
        raise UserError(
            f"{path}: format version {met}, but this unmask reads up to {FORMAT_VERSION}; it was written by unmask "
            f"{writer}: pip install --upgrade unmask"
        )
    if met < 1:
        raise UserError(f"{path}: format version {met} never existed; wanted {FORMAT_VERSION}; save it again")
    return dict(config)


def _present(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"loading {path.parent}: {path.name} is missing; a checkpoint folder holds {CONFIG}, {WEIGHTS} and, for "
            f"text, {TOKENIZER}; copy it again"
        )
    return path


def _build_denoiser(data: object, network: nn.Module, extra: Mapping[str, type] | None) -> Denoiser:
    if not isinstance(data, Mapping):
        raise UserError(f'config: "denoiser" is {data!r}, wanted an object with a key "class"')
    cls: Any = resolve_class(data.get("class"), Denoiser, extra)
    try:
        built: Denoiser = cls(network, **{key: value for key, value in data.items() if key != "class"})
    except (TypeError, ValueError) as error:
        raise UserError(f"config: denoiser {cls.__name__} refused its fields: {error}") from error
    return built


def _load_weights(denoiser: Denoiser, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _present(path)
    try:
        stored = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged or cut short ({error}); copy it again") from error
    wanted = own_tensors(denoiser)
    problems = _differences(wanted, stored)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{path}: holds the weights of another model than {CONFIG} describes: {'; '.join(problems[:3])}{more}; "
            "take both files from the same checkpoint"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def _differences(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {tuple(stored[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    missing = [f"{name} is missing" for name in wanted if name not in stored]
    return shapes + missing + [f"{name} is unknown" for name in stored if name not in wanted]


def _check_tokenizer(tokenizer: Tokenizer | None, process: Process, operation: str) -> None:
    if tokenizer is None:
        return
    for name in ("vocab_size", "mask_id"):
        met, wanted = getattr(tokenizer, name), getattr(process, name, None)
        if wanted is not None and met != wanted:
            raise UserError(
                f"{operation}: the tokenizer has {name}={met}, the {type(process).__name__} process {name}={wanted}; "
                f"take {TOKENIZER} from the same checkpoint as {CONFIG}"
            )
