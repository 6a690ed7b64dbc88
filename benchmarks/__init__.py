"""Benchmarks: run as modules from the root of the repository; not part of the package."""
