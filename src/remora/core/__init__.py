"""Pure decisions: no asyncio, clock, randomness, os, threads or logging in here."""
