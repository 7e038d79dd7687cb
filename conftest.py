"""Doctests import the package as a user would; TensorFlow's start-up notes stay out of them."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
