"""`python -m mi_massive` is the command line."""

from mi_massive.cli import main

main()
