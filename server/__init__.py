"""The aggregation server: it sees updates, never events."""
