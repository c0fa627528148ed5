"""One server around a Llama model; every backend a plug-in."""
