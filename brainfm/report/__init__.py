"""The page: one file per table or figure."""
