import io

import torch
from rich.console import Console

from text_models import tiny_model
from unmask.loops import Step
from unmask.viz.terminal import play


def shown(*, terminal: bool, num_samples: int = 2) -> tuple[str, list[Step], list[Step]]:
    model = tiny_model()
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, height=40, color_system="truecolor")
    steps = list(model.stream("ab", num_samples=num_samples, length=20, num_steps=20, seed=1))
    passed = list(play(iter(steps), model.tokenizer, num_steps=20, console=console, frame_seconds=0.0))
    return file.getvalue(), steps, passed


def test_every_step_is_passed_on() -> None:
    for terminal in (True, False):
        _, steps, passed = shown(terminal=terminal)
        assert all(a is b for a, b in zip(steps, passed, strict=True))


def test_a_file_gets_a_few_plain_lines() -> None:
    text, _, _ = shown(terminal=False)
    lines = text.splitlines()
    assert 5 <= len(lines) <= 11
    assert "\x1b" not in text
    assert lines[-1].startswith("step 20/20  t=0.000  0 masked")
    assert "░" in lines[0]
    assert "░" not in lines[-1]


def test_a_terminal_shows_masks_dim_and_fresh_tokens_by_confidence() -> None:
    text, _, _ = shown(terminal=True)
    assert "\x1b[90m░" in text  # dim blocks
    assert "48;2;" in text  # a background of its own colour
    assert "sample 2" in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    model = tiny_model()
    model.tokenizer.decode_tokens = lambda ids, **_: ["\x1b]0;x\x07"] * len(ids)  # type: ignore[method-assign]
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    steps = model.stream(length=4, num_steps=2)
    list(play(steps, model.tokenizer, num_steps=2, console=console, frame_seconds=0.0))
    assert "\x1b]0;" not in file.getvalue()
    assert "\x07" not in file.getvalue()


def test_padding_is_not_shown() -> None:
    from unmask.sampling import SamplingConfig

    model = tiny_model()
    canvas = model.canvas(["ab", "abcdefgh"], length=3)
    assert canvas.attention_mask is not None
    file = io.StringIO()
    steps = model.denoise(canvas, SamplingConfig(num_steps=1))
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    list(play(steps, model.tokenizer, num_steps=1, attention_mask=canvas.attention_mask, console=console))
    assert torch.equal(canvas.attention_mask.sum(1), torch.tensor([5, 11]))
    assert "⏹" * 3 not in file.getvalue()
