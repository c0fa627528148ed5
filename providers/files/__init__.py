"""Where the bytes of uploaded files are kept: one file per place."""
