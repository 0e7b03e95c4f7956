"""C files of this package and how they are called. Where they cannot be compiled, torch's operations compute the same."""
