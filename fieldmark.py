"""The front door: one command line that opens each room only when it is entered."""
