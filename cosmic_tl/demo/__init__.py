"""The embedded chat model, its prompts, and the grammar they come from."""
