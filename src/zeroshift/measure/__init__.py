"""Did it work: networks, features, metrics, the collapse monitor, the report of a run."""
