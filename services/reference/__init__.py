"""The page at `/docs`: what a browser is given."""
