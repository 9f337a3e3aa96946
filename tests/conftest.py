"""The tests see the shipped models alone, whatever the user has registered or trained."""

import os
import tempfile

_home = tempfile.TemporaryDirectory(prefix="robustdyn-tests-")
os.environ["ROBUSTDYN_HOME"] = _home.name
