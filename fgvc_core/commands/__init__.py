"""Commands of the core, one file each; heavy imports happen inside the functions."""
