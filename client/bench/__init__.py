"""How quick a device is, measured: the rows of `homerank-client benchmark`."""
