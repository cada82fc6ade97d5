"""The clip generator, models/clips/generate.py, for the training code."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clips"))

import generate  # noqa: E402, F401
