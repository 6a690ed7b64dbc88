"""Scripts that draw the figures of the documentation: ``python -m docs.figures.NAME`` at the root of the repository."""
