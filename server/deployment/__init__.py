"""A real federation at the coordinator: keys, processes, the only open port."""
