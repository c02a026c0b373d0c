"""`python -m ensemblead`: the command line, where its script is not installed."""

from ensemblead.cli import main

if __name__ == "__main__":
    main()
