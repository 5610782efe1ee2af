"""The canonical form, OpenAI's chat format, in which every API surface and every provider format meet."""
