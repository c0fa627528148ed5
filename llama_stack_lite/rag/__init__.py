"""Documents: parsed, cut into chunks, embedded as a job, and found again."""
