"""The files of tests that take longest, from the longest on.

They begin first: workers share the suite file by file, and one that began a long file last
would leave the others idle.
"""

LONGEST = (
    "docs/test_commands.py",
    "simulations/test_superlink.py",
    "client/test_blindness.py",
    "simulations/test_run.py",
    "simulations/test_compare.py",
    "test_freeze.py",
    "simulations/test_interruption.py",
    "simulations/test_private_run.py",
    "client/privacy/test_ledger.py",
    "simulations/test_superlink_faults.py",
    "docs/test_walkthrough.py",
    "simulations/test_restore_drill.py",
    "simulations/test_superlink_interruption.py",
    "simulations/test_start.py",
    "simulations/test_secure_run.py",
    "server/rounds/test_resume.py",
    "test_library.py",
    "test_components.py",
    "fgvc_core/privacy/test_rows.py",
    "simulations/test_scenarios.py",
    "simulations/test_workers.py",
    "simulations/test_front_door.py",
)
