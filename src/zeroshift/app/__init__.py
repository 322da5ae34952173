"""Doors: the command line, progress at a terminal, uploads."""
