from __future__ import annotations

import pytest
import torch

from lit_backdoor.functional import Probe
from tests.helpers.tiny_models import ANSWER, VOCAB


@pytest.fixture
def backdoor_probe() -> Probe:
    """All (a, b): triggered inputs as recipient, benign ones as donor."""
    a, b = (grid.flatten() for grid in torch.meshgrid(torch.arange(VOCAB), torch.arange(VOCAB), indexing="ij"))
    triggered, benign = (torch.stack([a, b, torch.full_like(a, t)], dim=1) for t in (1, 0))
    return Probe(triggered, benign, torch.full_like(a, ANSWER), a, recipient="backdoor", donor="benign")
