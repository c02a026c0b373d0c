"""Work on several processes and machines: executors, units of work, and what both sides check."""
