"""``clipgguf`` and ``python -m clipgguf``: the command line."""

import sys


def main() -> None:
    """Run the command line, and end as quietly when Ctrl-C comes before it is even imported."""
    try:
        from clipgguf import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
