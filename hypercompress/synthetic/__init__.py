"""Images that nobody took: noise, and images made from the model itself."""
