"""``python -m nbbn``: the same as the command ``nbbn``."""

from nbbn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
