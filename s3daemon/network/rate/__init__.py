"""The bandwidth of uploads: a limit shared among those in flight, set by hand or found from what is delivered."""
