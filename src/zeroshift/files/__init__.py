"""Weights in and out, safely: every layout, the hub, models by name."""
