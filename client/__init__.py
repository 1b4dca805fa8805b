"""One person's device: stores events, trains under a privacy budget, ranks, and never sends behaviour."""
