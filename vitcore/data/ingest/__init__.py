"""From a corpus to a dataset version: read, plan, convert, write, publish; or adopt tars where they lie."""
