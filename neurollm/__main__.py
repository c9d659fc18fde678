"""``python -m neurollm`` is the command line."""

from neurollm.cli import main

main()
