"""The loop that knows no method, and the folder of a run."""
