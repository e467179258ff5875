"""What a model's hidden layers know of music: small classifiers over them, after MARBLE (Yuan et al. 2023)."""
