"""What several tests need, and no fixture: traffic with its truth, the audit, worker processes, mutations."""
