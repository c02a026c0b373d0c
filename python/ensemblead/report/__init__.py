"""Results for people: tables, figures, one HTML page."""
