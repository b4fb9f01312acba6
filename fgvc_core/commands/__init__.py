"""The core's commands, one file each; they import nothing heavy until one runs."""
