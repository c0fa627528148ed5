"""Agents: a turn asks the model, runs the tools it calls, and asks again until it has answered."""
