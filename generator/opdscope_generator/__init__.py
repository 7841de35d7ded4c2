"""The generator: rollouts and log-probabilities of one model over gRPC."""
