"""Files for the environment of the servers, which import nothing of this package; their folder is put on PYTHONPATH."""
