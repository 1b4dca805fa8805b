"""Many virtual devices on one machine: federated runs, evaluation and reports."""
