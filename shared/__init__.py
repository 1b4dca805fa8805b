"""What devices, servers and simulations must agree on: nothing here talks to another machine."""
