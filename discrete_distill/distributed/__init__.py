"""What many processes of a run share."""
