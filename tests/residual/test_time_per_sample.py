"""A residual function shown one time for each sample does to each what it does to it alone."""

import pytest
import torch

from odenet.residual import residuals
from tests.oracles import make_residual, residual_state


@pytest.mark.parametrize("name", residuals)
def test_each_sample_sees_its_own_time(name):
    F = make_residual(name).eval()
    for parameter in F.parameters():  # nothing that starts at zero hides the time
        torch.nn.init.normal_(parameter, std=0.5)
    x = residual_state(F)
    t = torch.linspace(0.1, 0.9, len(x), dtype=torch.float64)
    whole = F(t, x)
    assert whole.shape == x.shape
    for i in range(len(x)):
        torch.testing.assert_close(whole[i], F(t[i], x[i : i + 1])[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(whole[i], F(t[i : i + 1], x[i : i + 1])[0], rtol=1e-10, atol=1e-10)
