"""Where model files come from: one file per scheme."""
