"""The routes of the API, a module for each group: paths, bodies and their documentation. What they do is elsewhere."""
