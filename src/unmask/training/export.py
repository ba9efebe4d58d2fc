"""The usable model in a run's folder, beside its training checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError

from unmask.checkpoint import CONFIG, TOKENIZER, WEIGHTS, Checkpoint, write_checkpoint
from unmask.errors import UserError
from unmask.training.state import sync

_HIDDEN = ".exporting"


def export_checkpoint(folder: Path, checkpoint: Checkpoint, *, dry: bool = False) -> None:
    """Write config.json, model.safetensors and tokenizer.json into the folder of a run.

    Each file is replaced in one move and config.json, which names the others, comes last. A kill between two moves
    leaves a usable model, since only the weights and the card change during a run.

    Args:
        folder: of the run; whatever else it holds is left alone.
        checkpoint: the model.
        dry: write everything, then delete it: shows at the start that the export will work at the end.

    Raises:
        UserError: the model cannot be saved, or the disk is full; what was exported before is left as it was.
    """
    hidden = folder / _HIDDEN
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        hidden.mkdir()
        write_checkpoint(hidden, checkpoint)
        written = [hidden / name for name in (WEIGHTS, TOKENIZER, CONFIG) if (hidden / name).exists()]
        for path in () if dry else written:
            sync(path)
            path.replace(folder / path.name)
        sync(folder)
    except (OSError, SafetensorError, AttributeError, TypeError) as error:
        mend = "free some space" if isinstance(error, OSError | SafetensorError) else "give the network a NetworkConfig"
        raise UserError(
            f"exporting the model to {folder}: {error}; training checkpoints are intact: {mend} and resume the run"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
