"""What a site does with a request of each stage; one handler a file."""
