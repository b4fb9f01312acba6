"""Privacy audit: attacks on our own mechanism that give lower bounds on epsilon."""
