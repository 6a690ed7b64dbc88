"""Distillation: student paths, log-ratios and rewards, estimators of the integral KL, and methods made of them."""
