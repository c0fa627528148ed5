"""HTTP in, HTTP out: each handler resolves a name, calls one function, returns."""
