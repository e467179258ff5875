"""Documents to indexed sources, mixtures of them, and the ordered stream of samples; audio to codes before that."""
