"""The readers of documents: they run in child processes, so they import nothing of the server."""
