"""Many runs side by side: variants, jobs, statistics, tables, the page, blind votes."""
