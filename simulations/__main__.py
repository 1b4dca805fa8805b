"""`python -m simulations` is `homerank-simulate`."""

from simulations.cli import main

if __name__ == "__main__":
    main()
