from pathlib import Path

import pytest
import torch
from generated_code import generated_once

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def quick_models():
    """TorchScript is generated once, and runs as it stands: a test calls a model too few times for more to pay."""
    with torch.jit.optimized_execution(False), generated_once():
        yield


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights whenever a test runs, and after whichever other."""
    torch.manual_seed(0)


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
