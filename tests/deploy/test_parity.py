"""How a comparison accounts for what differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.deploy.parity import Trace, compare

X = torch.tensor([[1.0, 1.0], [1e-6, 1.0]])


@pytest.mark.parametrize(
    ("weight", "signs", "outputs", "flips", "trace"),
    [
        ([[1, 1], [-1, 1]], [[1, 1], [1, 1]], [[2, 0], [2, 0]], 0, None),
        ([[1, 1], [-1, 1]], [[1, 1], [-1, 1]], [[2, 0], [0, 2]], 1, Trace(1, 1, 1e-6, 1.0)),
        ([[1, 1], [1, 1]], [[1, 1], [1, 1]], [[2, 2], [2, 2.0001]], 0, Trace(1, None, 0.0, 2.0)),
    ],
    ids=["equal", "a sum of 0 but for rounding", "outputs equal but for rounding"],
)
def test_a_sample_that_differs_is_traced(weight, signs, outputs, flips, trace):
    model = nn.Sequential(fb.nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor(weight).float()
    found = {"signs": np.array(signs, np.int8), "outputs": np.array(outputs, np.float32)}
    parity = compare(model, X, ["outputs"], ["signs"], lambda names, _: found, "it")
    assert (parity.flips, parity.agreement) == (flips, 1 if trace is None else 0.5)
    assert len(parity.traces) == (trace is not None)
    for one in parity.traces:
        assert (one.sample, one.site) == (trace.sample, trace.site)
        assert (one.value, one.largest) == pytest.approx((trace.value, trace.largest))
    assert parity.furthest == pytest.approx(1e-6 if flips else 0)
