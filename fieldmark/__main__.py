"""``python -m fieldmark``: the command line."""

from fieldmark.cli import main

if __name__ == "__main__":
    main()
