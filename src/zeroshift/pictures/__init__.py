"""Pictures by seed and pictures of one's own, of a run or a generator."""
