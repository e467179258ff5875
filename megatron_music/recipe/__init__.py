"""The recipe: one strict YAML file that says everything a run does."""
