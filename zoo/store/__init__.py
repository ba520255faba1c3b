"""Trained models: carried, checked, loaded and shared."""
