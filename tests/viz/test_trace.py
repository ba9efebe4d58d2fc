import pytest
import torch

from text_models import tiny_model
from unmask.viz.trace import record


def test_replaying_the_events_gives_the_final_text() -> None:
    model = tiny_model()
    canvas = model.canvas(["ab", "a longer one"], length=14)
    from unmask.sampling import SamplingConfig

    steps = list(model.denoise(canvas, SamplingConfig(num_steps=6, seed=2), may_end=False))
    trace = record(steps, model.tokenizer, attention_mask=canvas.attention_mask)
    final = steps[-1].canvas
    assert isinstance(final, torch.Tensor)
    for number, row in enumerate(trace.rows):
        texts = list(row.initial)
        assert texts[: (2, 12)[number]] == list(("ab", "a longer one")[number])
        assert texts.count(None) == 14
        for event in row.events:
            assert texts[event.site] is None
            texts[event.site] = event.text
        assert "".join(t or "" for t in texts) == model.decode(model.real_rows(final, canvas)[number])
    assert trace.times[-1] == 0.0
    assert trace.network_calls == [step.network_calls for step in steps]


def test_confidence_is_the_probability_at_the_step_of_the_commit() -> None:
    model = tiny_model()
    steps = list(model.stream(length=10, num_steps=5, seed=1))
    trace = record(steps, model.tokenizer)
    assert len(trace.rows[0].events) == 10
    for event in trace.rows[0].events:
        step = steps[event.step - 1]
        assert step.newly_set[0, event.site]  # type: ignore[index]
        assert event.confidence == pytest.approx(float(step.commit_log_prob[0, event.site].exp()), abs=1e-4)  # type: ignore[index, union-attr]


def test_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="got no step"):
        record([], tiny_model().tokenizer)
