"""Everything behind the contracts: one file per provider."""
