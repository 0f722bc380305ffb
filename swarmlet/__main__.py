"""`python -m swarmlet` is the command `swarmlet`."""

from swarmlet.cli.main import main

if __name__ == "__main__":
    main()
