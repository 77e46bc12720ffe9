"""Learn a fusion from pairs and labels, and say what the image adds."""
