"""The API's description for programs, `/openapi.json`."""
