"""OccamToken: budget-adaptive pruning of visual tokens, and exact follow-ups over a cached pruned prefix."""
