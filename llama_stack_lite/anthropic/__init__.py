"""Anthropic's API as a dialect of chat: its requests into ours, our chunks into its events, its errors."""
