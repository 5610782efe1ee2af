"""Names that the command line and the workers have in common for the model that runs on this machine."""

from __future__ import annotations

MODEL = "smollm2-135m-instruct"
"""As the server calls it."""

NAME = f"local/{MODEL}"
"""As clients ask for it: the name of the vendor's row, and the model's."""

BASE_URL_VARIABLE = "LOCAL_MODEL_BASE_URL"
KEY_VARIABLE = "LOCAL_MODEL_API_KEY"
