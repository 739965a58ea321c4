"""Runs the agent on a host, for tests; see :mod:`guest_agent.main`."""

import sys

from guest_agent.main import main

sys.exit(main(sys.argv[1:]))
