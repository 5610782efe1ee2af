"""What providers speak, as pure code: who they are, how a request looks, what an answer means. No I/O in here."""
