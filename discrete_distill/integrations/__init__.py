"""The library in other people's training loops. Import the one you use: each needs its own framework."""
