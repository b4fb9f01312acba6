"""What a process has imported when it begins to wait."""

import subprocess
import sys

HEAVY = ("torch", "torchvision", "timm", "sklearn", "scipy", "opacus", "sqlalchemy", "flwr")


def loaded(module):
    """Large packages that a module brings along."""
    script = f"import sys, {module}; print(*(n for n in {HEAVY} if n in sys.modules))"
    ran = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    return ran.stdout.split()
