"""Who may ask, and for how much: keys that are data, the limits of keys and tenants, and the log of who changed them."""
