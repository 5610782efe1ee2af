"""What answers cost, what was spent by whom, and how much may be: prices, the ledger, budgets."""
