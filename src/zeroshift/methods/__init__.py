"""The papers: learned words, directions, losses, and what they need of each kind of generator."""
