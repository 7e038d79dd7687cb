"""Claims about tfkit, one file each, measured anew by whoever runs them."""
