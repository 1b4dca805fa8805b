"""What is spent, what it adds up to, and how it is said."""
