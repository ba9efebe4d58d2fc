from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from unmask.viz.curve import write_curve

HISTORY = [(10, 4.0, 0.05), (20, 3.0, 0.04), (30, 2.5, 0.03)]


def test_the_same_data_gives_the_same_picture_and_every_input_shows(tmp_path: Path) -> None:
    def picture(name: str, **changes: object) -> np.ndarray:
        settings = {"history": HISTORY, "references": {"unigram": 4.8, "order-4 n-gram": 2.2}} | changes
        return imread(write_curve(tmp_path / f"{name}.png", **settings))  # type: ignore[arg-type]

    plain = picture("plain")
    assert np.array_equal(plain, picture("again"))
    for change in (
        {"history": [*HISTORY[:2], (30, 2.4, 0.03)]},
        {"history": [*HISTORY[:2], (30, 2.5, 0.2)]},
        {"references": {"unigram": 4.8}},
        {"references": {"unigram": 4.8, "order-4 n-gram": 2.3}},
        {"bound": False},
        {"title": "another"},
    ):
        assert not np.array_equal(plain, picture("changed", **change)), change


def test_one_point_is_enough_and_none_is_refused(tmp_path: Path) -> None:
    assert write_curve(tmp_path / "a" / "one.png", HISTORY[:1]).stat().st_size > 1000
    with pytest.raises(ValueError, match="history is empty"):
        write_curve(tmp_path / "none.png", [])
