"""Scripts that measure; each prints a markdown table. Not part of what is installed."""
