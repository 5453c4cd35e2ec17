"""How quickly the console's pages answer over a large fleet."""
