"""`python -m subsecond` is the command line."""

from subsecond.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
