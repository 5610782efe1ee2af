"""Following logs and relaying them: one reader of Redis for all viewers of a process."""
