"""Attacks on the real code that measure its privacy from below: canary clients, and membership inference."""
