"""Generators and discriminators, what may move in them, and the seeds of every draw."""
