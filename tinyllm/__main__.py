"""`python -m tinyllm` is `tinyllm`: what torchrun starts."""

from tinyllm.cli import main

if __name__ == "__main__":
    main()
