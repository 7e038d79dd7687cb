"""Claims about tfkit, each measured by one file: ``python -m experiments.NAME``."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes hide the tables
