"""A model that stays running: it watches a folder (`watching.py`), or answers over HTTP (`app.py`)."""
