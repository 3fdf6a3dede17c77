"""Makes tests/ importable (`import tiny`) from the tests of every room."""
