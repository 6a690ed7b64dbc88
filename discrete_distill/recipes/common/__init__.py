"""What all recipes use."""
