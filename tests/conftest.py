from pathlib import Path

import pytest
import torch

import phi_equivariant  # noqa: F401  (before e3nn and mace: it makes e3nn 0.4.4 importable)

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def plain_execution():
    """TorchScript as it stands: optimising mace takes longer than the few calls that a test makes of a model."""
    with torch.jit.optimized_execution(False):
        yield


@pytest.fixture
def double():
    """float64 as torch's default precision."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.fixture
def published():
    """Folder of published data files; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"published data not found at {DATA}")
    return DATA
