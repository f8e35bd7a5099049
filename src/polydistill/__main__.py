"""`python -m polydistill`."""

from polydistill.cli import main

if __name__ == "__main__":
    main()
