"""``python -m tfkit`` is the command line."""

from tfkit.cli import main

main(prog_name="tfkit")
