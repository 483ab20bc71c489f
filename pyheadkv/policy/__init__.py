"""What is kept: budgets, scorers, allocators, policies, plans."""
