"""Lets tests, and the processes that they start, import the functions that those run; the training tests' recipe."""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

_spec = importlib.util.spec_from_file_location("training_fixtures", Path(__file__).parents[1] / "training/conftest.py")
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)
corpus, make_recipe = _fixtures.corpus, _fixtures.make_recipe
