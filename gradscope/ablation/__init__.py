"""Ablation grids: from YAML to results on disk."""
