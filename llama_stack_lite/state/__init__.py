"""What the server keeps: conversations, responses, prompts, agents."""
