"""Whole recipes, each runnable as a module."""
