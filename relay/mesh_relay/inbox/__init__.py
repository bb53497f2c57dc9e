"""Where frames wait for their recipients."""
