"""Fixtures of all rooms."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Let torch compute on one thread: sums then have one order, and two workers share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
