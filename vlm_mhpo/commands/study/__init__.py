"""Train several objectives on the same task, data order, start and sampling seeds, and compare them over seeds."""
