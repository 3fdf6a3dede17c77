"""Makes tests/ importable (`import tiny`) from the tests of every room; no example of hypothesis is
timed."""

from hypothesis import settings

# A test that waits for a processor has not failed.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
