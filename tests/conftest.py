"""Hypothesis profiles: `dev` explores, `ci` gives the same verdict every time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A shared machine makes a deadline a matter of luck; test data are small enough not to need one.
settings.register_profile("dev", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
