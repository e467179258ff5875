"""Fixtures that many rooms share."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def yue_data() -> Path:
    """The example data published with YuE, which lies beside the checkout on our machines only."""
    folder = REPOSITORY.parent / "shared" / "data" / "yue"
    if not folder.is_dir():
        pytest.skip("the YuE example data is not beside this checkout")
    return folder
