"""The suites stop at their first counterexample here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings


@pytest.fixture(autouse=True)
def _no_shrinking() -> Iterator[None]:
    """The first counterexample will do; making it small takes most of the time."""
    usual = settings.get_current_profile_name()
    settings.register_profile("first counterexample", parent=settings(), phases=[Phase.generate])
    settings.load_profile("first counterexample")
    yield
    settings.load_profile(usual)
