"""From two exported models, lyrics and tags to a song."""
