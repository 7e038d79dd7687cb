"""tfkit: a pretrained Keras model to a small, fast, verified artifact on a device.

Choose layers, adapt, search, prune, strip, export, prove. Importing the package loads
neither TensorFlow nor Keras; a name's first use does. `tfkit.curves` never does.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names are in __init__.pyi
