"""Small base models from scratch, trained on worked solutions."""
