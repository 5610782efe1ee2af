"""What users get beside the log: sessions, usage, batches, files, webhooks. Each may act before a create and at settlement."""
