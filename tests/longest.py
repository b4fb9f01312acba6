"""The files of tests that take longest, from the longest on.

They begin first: workers share the suite file by file, and one that began a long file last
would leave the others idle.
"""

LONGEST = (
    "docs/test_commands.py",
    "simulations/test_superlink.py",
    "client/test_blindness.py",
    "simulations/test_compare.py",
    "test_freeze.py",
    "simulations/test_front_door.py",
    "simulations/test_superlink_faults.py",
    "simulations/test_scenarios.py",
    "docs/test_walkthrough.py",
    "simulations/test_interruption.py",
    "simulations/test_three_layouts.py",
    "simulations/test_restore_drill.py",
    "simulations/test_superlink_interruption.py",
    "simulations/test_run.py",
    "client/privacy/test_ledger.py",
    "simulations/test_workers.py",
    "test_library.py",
)
