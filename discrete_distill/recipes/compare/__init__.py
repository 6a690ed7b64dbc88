"""Methods from one teacher, compared."""
