"""What devices, servers and simulations must agree on: no network, no user interface."""
