import pytest
import torch

from unmask.data.canvas import build_canvas


def test_rows_of_different_lengths_are_padded_on_the_right() -> None:
    canvas = build_canvas([[5, None, None], [None], [7, 8]], mask_id=9, pad_id=1)
    assert canvas.tokens.tolist() == [[5, 9, 9], [9, 1, 1], [7, 8, 1]]
    assert canvas.editable.tolist() == [[False, True, True], [True, False, False], [False, False, False]]
    assert canvas.attention_mask is not None
    assert canvas.attention_mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert canvas.longest_fill == 2


def test_rows_of_one_length_need_no_mask_and_a_part_keeps_the_longest_fill() -> None:
    canvas = build_canvas([[5, None], [None, None]], mask_id=9, pad_id=1)
    assert canvas.attention_mask is None
    part = canvas.rows(0, 1)
    assert torch.equal(part.tokens, torch.tensor([[5, 9]]))
    assert part.longest_fill == 2
    assert canvas.to(torch.device("cpu")).longest_fill == 2


@pytest.mark.parametrize("rows", [[], [[1], []]])
def test_nothing_to_lay_out_is_refused(rows: list[list[int | None]]) -> None:
    with pytest.raises(ValueError, match="wanted at least one row, none of them empty"):
        build_canvas(rows, mask_id=9, pad_id=1)
