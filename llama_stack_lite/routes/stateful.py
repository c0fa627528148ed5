"""The routes of what is kept, which are there where the distribution has `storage`."""

from . import agents, conversations, files, prompts, responses

ROUTERS = (responses.router, conversations.router, prompts.router, agents.router, files.router)
