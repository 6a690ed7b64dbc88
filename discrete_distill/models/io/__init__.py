"""Loading, saving and publishing of networks."""
