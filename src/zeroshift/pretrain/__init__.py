"""How the models of the built-in world are made."""
