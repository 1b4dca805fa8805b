"""The long-lived local service: records, ranks, explains and forgets for one person, over HTTP on loopback."""
