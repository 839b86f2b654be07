"""``python -m lengthwise``: the command line."""

from lengthwise.training.cli import main

main()
