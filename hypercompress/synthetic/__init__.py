"""Images that nobody took: noise, and those made from the model itself."""
