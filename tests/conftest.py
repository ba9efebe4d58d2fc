"""Settings that every test shares."""

import pytest
import torch

pytest.register_assert_rewrite("contracts", "helpers")


def pytest_configure() -> None:
    """One thread a process: pytest-xdist workers would otherwise fight over the cores."""
    torch.set_num_threads(1)
