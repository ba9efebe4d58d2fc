"""Which masks first, and how many: functions that plug into `unmask.samplers.unmask.Unmask`."""

from __future__ import annotations

from typing import Literal

OrderName = Literal["random", "left-to-right", "top-probability", "margin", "entropy"]
"""What the orders are called where they are named by a word, as on the command line."""
