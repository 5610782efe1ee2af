"""The console: pages that look at this server through its own public routes. They are plain files, served as they are."""
