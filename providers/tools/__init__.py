"""Tools that this server runs for models, one file for each kind."""
