"""`python -m robustdyn`."""

from robustdyn.cli import main

if __name__ == "__main__":
    main()
