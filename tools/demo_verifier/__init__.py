"""How the packaged verifier was made: labelled samples of the demo models, and a small classifier of them."""
