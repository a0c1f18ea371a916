"""Records as words, tables, figures, cards and pages."""
