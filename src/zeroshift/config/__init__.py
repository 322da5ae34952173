"""What can be asked: every option, named recipes, and the one way in which options are overridden."""
