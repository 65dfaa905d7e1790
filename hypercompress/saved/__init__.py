"""What lies on disk: student folders and networks, written whole or not at all."""
