"""What small runs tell about a large one."""
