"""What a site needs beside the learning: its identity."""
