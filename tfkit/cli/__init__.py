"""The command line: ``tfkit inspect | tune | prune | export | bench | doctor``.

What a command needs it imports when it runs, so that ``--help`` answers at once.
"""

import click

import tfkit
from tfkit.cli.bench import bench
from tfkit.cli.doctor import doctor
from tfkit.cli.export import export
from tfkit.cli.inspect import inspect
from tfkit.cli.prune import prune
from tfkit.cli.tune import tune

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tfkit.__version__, prog_name="tfkit")
def main() -> None:
    """A pretrained Keras model to a small, fast, verified artifact on a device.

    Every command exits with 0 when it did what was asked, with 1 when the work failed, and with 2
    when the call was wrong.
    """


for each in (inspect, tune, prune, export, bench, doctor):
    main.add_command(each)
