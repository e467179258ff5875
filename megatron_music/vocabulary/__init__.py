"""What an id means: id ranges from a vocabulary file, text to ids and back, and which ids may follow where."""
