"""Who may ask, and for how much: keys that are data, browsers that are signed in with one, the limits of keys and tenants,
shares of single answers, and the log of who changed them."""
