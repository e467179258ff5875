"""The training loop: phases, steps, and callbacks for all that is not forward, backward or step."""
