"""Rollouts from a workstation to many boards over SSH. No board imports this package.

`policy`, `ledger` and `inventory` hold the rules and know nothing of SSH; `ssh` decides nothing.
"""
