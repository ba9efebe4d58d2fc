"""The canvas being denoised, live in a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.style import Style
from rich.text import Text
from torch import Tensor

from unmask.data.tokenizers import Tokenizer
from unmask.loops import Step

MASK_BLOCK = "░"
_PLAIN_LINES = 10


def play(
    steps: Iterable[Step],
    tokenizer: Tokenizer,
    *,
    num_steps: int,
    attention_mask: Tensor | None = None,
    console: Console | None = None,
    frame_seconds: float = 0.05,
) -> Iterator[Step]:
    """Pass `steps` on while showing them.

    On a terminal the canvas is redrawn in place: masks as dim blocks, tokens set in this step on a background from red
    (improbable) to green (sure), and a line of figures. Elsewhere about ten plain lines are printed.

    Args:
        steps: of one run on text canvases (b, l).
        tokenizer: names the tokens.
        num_steps: how many there will be.
        attention_mask: (b, l), True at real sites; padding is not shown.
        console: where; standard output by default.
        frame_seconds: the least time that a frame stays, on a terminal.
    """
    console = console or Console()
    view = _View(tokenizer, num_steps, attention_mask)
    if not console.is_terminal:
        yield from _plain(steps, view, console)
        return
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="ellipsis") as live:
        for step in steps:
            begun = time.perf_counter()
            live.update(view.frame(step), refresh=True)
            yield step
            time.sleep(max(0.0, frame_seconds - (time.perf_counter() - begun)))


def _plain(steps: Iterable[Step], view: _View, console: Console) -> Iterator[Step]:
    stride = max(1, math.ceil(view.num_steps / _PLAIN_LINES))
    for step in steps:
        if (step.index + 1) % stride == 0 or step.index + 1 == view.num_steps:
            first = " ".join(view.row(step, 0).plain.split())
            line = f"{view.figures(step)} | {first}"
            console.print(Text(line if len(line) <= 160 else line[:157] + "..."), soft_wrap=True)
        yield step


class _View:
    """Turns steps into renderables."""

    def __init__(self, tokenizer: Tokenizer, num_steps: int, attention_mask: Tensor | None) -> None:
        self.tokenizer, self.num_steps = tokenizer, num_steps
        self.attention_mask = attention_mask
        # a typical token is some characters wide: blocks of that width keep the text from moving much
        ids = range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // 256))
        widths = [len(piece) for piece in tokenizer.decode_tokens(list(ids)) if piece]
        self.mask = MASK_BLOCK * max(1, round(sum(widths) / max(1, len(widths))))

    def frame(self, step: Step) -> RenderableType:
        """The whole picture after a step."""
        rows = range(len(_tensor(step.canvas)))
        parts: list[RenderableType] = []
        for row in rows:
            parts += [Rule(Text(f"sample {row + 1}", style="dim"), style="dim", align="left"), self.row(step, row)]
        done = (step.index + 1) / self.num_steps
        bar = Text("━" * round(28 * done), style="cyan") + Text("━" * (28 - round(28 * done)), style="bright_black")
        return Group(*parts, Rule(style="dim"), bar + Text(f"  {self.figures(step)}", style="dim"))

    def figures(self, step: Step) -> str:
        """One line about a step."""
        open_sites = int((_tensor(step.canvas) == self.tokenizer.mask_id).sum())
        return (
            f"step {step.index + 1}/{self.num_steps}  t={step.s:.3f}  {open_sites} masked  "
            f"{step.network_calls} network calls  {step.seconds:.1f} s"
        )

    def row(self, step: Step, row: int) -> Text:
        """One sample after a step."""
        ids = _tensor(step.canvas)[row].tolist()
        real = [True] * len(ids) if self.attention_mask is None else self.attention_mask[row].tolist()
        sites = [i for i in range(len(ids)) if real[i]]
        pieces = self.tokenizer.decode_tokens([ids[i] for i in sites], mask=self.mask, special="⏹")
        fresh = _tensor(step.newly_set)[row].tolist()
        scores = [math.nan] * len(ids) if step.commit_log_prob is None else _tensor(step.commit_log_prob)[row].tolist()
        text = Text()
        for site, piece in zip(sites, pieces, strict=True):
            if ids[site] == self.tokenizer.mask_id:
                text.append(printable(piece), "bright_black")
            else:
                text.append(printable(piece), _fresh_style(scores[site]) if fresh[site] else None)
        return text


def _fresh_style(log_prob: float) -> Style:
    """Black on red (improbable) over yellow to green (sure); NaN, which is no score, on white."""
    if math.isnan(log_prob):
        return Style(color="black", bgcolor="white")
    p = min(1.0, math.exp(log_prob))
    red, green = min(1.0, 2 - 2 * p), min(1.0, 2 * p)
    return Style(color="black", bgcolor=f"rgb({round(90 + 150 * red)},{round(90 + 130 * green)},90)")


def printable(text: str) -> str:
    """The text without control characters, which could move the cursor or change the terminal's state."""
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text)


def _tensor(state: object) -> Tensor:
    if not isinstance(state, Tensor):
        raise TypeError(f"play: met {type(state).__name__}, wanted a text canvas (b, l)")
    return state
