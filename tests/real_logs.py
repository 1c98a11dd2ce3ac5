"""Where the real logs lie, for tests that use them where they are present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("CMI_FAST_DATA") or Path(__file__).parents[2] / "shared" / "data")
PARQUET = FOLDER / "kuairand_pure_long_view.parquet"
DATED_CSV = FOLDER / "kuairand_pure_log_dated.csv.gz"

needs_real_logs = pytest.mark.skipif(
    not (PARQUET.exists() and DATED_CSV.exists()), reason="no real logs: name their folder in CMI_FAST_DATA"
)
