"""Published tables, a module each: what the paper says, and the run that is ours."""
