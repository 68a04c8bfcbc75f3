"""``python -m clipgguf``: the command line without the console script."""

from clipgguf.cli import main

if __name__ == "__main__":
    main()
