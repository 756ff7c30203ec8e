"""`python -m service.cli` is `simclr`."""

from service.cli import main

main()
