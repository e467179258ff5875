"""Songs: their tracks, segments and tags, manifests of them, and their codes on disk."""
