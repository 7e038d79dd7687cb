"""The public names: lazy_loader reads them here, and type checkers do."""

from . import html as html
from . import measure as measure
from . import plots as plots
from . import progress as progress
