"""Did it work: networks, features, metrics, the collapse monitor, and the report of a run."""
