"""The native executor, typed."""
