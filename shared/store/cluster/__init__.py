"""Where keys lie when there is more than one place for them: cells, slots, and the nodes that have these."""
