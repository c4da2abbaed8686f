"""How many requests of a deployment may be sent a second time.

Every request pays a share of a retry into the budget, every retry takes one out. When many
fail at once the budget runs dry and failures are reported instead of doubling the load.

Source: the retry budgets of Finagle (W. Oliveira et al., Twitter): a share of traffic plus a
reserve, so that a deployment with little traffic can retry at all.
"""

from __future__ import annotations

#: Retries per request in the long run.
SHARE = 0.2
#: What a new budget starts with: enough for the requests one dying replica holds.
RESERVE = 100.0
#: The most it saves up.
CAPACITY = 1000.0


class RetryBudget:
    """Invariants: 0 <= balance <= CAPACITY; retries <= RESERVE + SHARE * requests."""

    __slots__ = ("balance",)

    def __init__(self) -> None:
        self.balance = RESERVE

    def deposit(self) -> None:
        """A request was sent for the first time."""
        self.balance = min(self.balance + SHARE, CAPACITY)

    def withdraw(self) -> bool:
        """Ask for one retry; False: none left."""
        if self.balance < 1.0:
            return False
        self.balance -= 1.0
        return True
