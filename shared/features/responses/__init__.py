"""The Responses API as a chat: requests, items, and the object of a response. Pure."""
