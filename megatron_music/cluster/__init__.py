"""Before the GPUs: what a recipe will do, and what it needs."""
