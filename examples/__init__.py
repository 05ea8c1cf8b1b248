"""Programs to copy; the grids in ablations/ name their training functions from here."""
