"""What every engine in this process shares: from a request to jobs, and from steps to chunks."""
