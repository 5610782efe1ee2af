"""Redis: the only room that knows how to reach it, how it fails, and what its keys are called. The queue is here, too."""
