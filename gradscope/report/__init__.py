"""One HTML file from a study or a trace."""
