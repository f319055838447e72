"""Folders of made-up runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from moemodel.validation.compare.comparison import Comparison, compare_folders
from tests.run_folders import study, write_matrix


@pytest.fixture(scope="session")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frameworks, two batches, two models, three repeats, of which four did not end well."""
    return write_matrix(tmp_path_factory.mktemp("runs") / "study", study())


@pytest.fixture(scope="session")
def comparison(matrix: Path) -> Comparison:
    """Of them."""
    return compare_folders([matrix])
