"""`occam eval`: a model under strategies and budgets over a task, logged as it goes, and what comes out of it."""
