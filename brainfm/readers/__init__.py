"""Files of the field's formats → `Recording`, each reader a few lines over a library that is kept by others."""
