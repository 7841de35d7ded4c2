"""The scorer: estimates, token by token, whether a distillation signal points to success."""
