"""Real clusters of Ray on this machine's loopback addresses."""
