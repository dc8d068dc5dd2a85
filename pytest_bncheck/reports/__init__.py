"""Results become text here; nothing here knows how a rule works."""
