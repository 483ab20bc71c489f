"""Files that are read and written: text, JSON lines, what may be written over, the cache folder."""
