"""What lists of generations are made of, whichever source they come from: rows, and filters over them."""
