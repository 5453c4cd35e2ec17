"""How the campaign engine and the fleet's side of the server bear a large fleet. Method and results: docs/scale.md."""
