"""The connection to the broker: publishing, subscriptions, failover and reconnection."""
