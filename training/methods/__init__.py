"""One file per method: options, networks, losses, costs."""
