"""What lies in a raw corpus: folders, tables, Hugging Face folders, tars; listed before any photograph is read."""
