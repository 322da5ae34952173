"""Worlds in which the true picture of every seed is known, so that adaptation can be scored against it."""
