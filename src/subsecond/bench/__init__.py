"""How fast a model runs here, and how fast this machine could run it at most."""
