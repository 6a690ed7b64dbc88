"""The protein recipe."""
