"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# No test passes or fails on a time: a busy machine is not a defect.
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")
