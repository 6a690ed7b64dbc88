"""The recipe of tasks with a verifier."""
