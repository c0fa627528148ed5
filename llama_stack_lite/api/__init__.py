"""The contracts: one file per API, wire types and the protocol a provider implements."""
